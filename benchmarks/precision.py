"""Does Fisher potential in lower precision rank as in higher? WRN-40-2, ResNet-34 and Mask R-CNN, random architectures.

Each architecture is scored in each precision, one after the other, all with the same weights and minibatch. Spearman's
correlation with the highest precision, the overlap of the ten best and the processor time go to
benchmarks/results/precision.md, anew after every ten. The work folder keeps scores and times; the same command goes on
where it was stopped.

    nice python benchmarks/precision.py --network resnet34 --data-root data/imagenet --work /tmp/precision --samples 40
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor  # noqa: E402
from nni_blockswap.cost.budget import Budget  # noqa: E402
from nni_blockswap.files import write_text  # noqa: E402
from nni_blockswap.methods.sampler import Sampler  # noqa: E402
from nni_blockswap.results.journal import Journal  # noqa: E402
from nni_blockswap.scoring.engines import Measure, choose  # noqa: E402
from nni_blockswap.scoring.proxies import make_proxy  # noqa: E402
from nni_blockswap.scoring.scorer import Scorer  # noqa: E402
from nni_blockswap.scoring.settings import ScoreSettings  # noqa: E402
from nni_blockswap.spaces import cost_table  # noqa: E402
from nni_blockswap.tasks import make_task  # noqa: E402

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
RESULTS = ROOT / "benchmarks" / "results" / "precision.md"
EVERY, BEST = 10, 10
COLUMNS = """
| budget | architectures | precision | Spearman with {highest} | of the 10 best in common | error | processor s |
|---|---|---|---|---|---|---|
"""
HEADER = """# Precision

Fisher potential in lower precision against higher: random architectures, one draw of the weights, seed 0. Weights and
minibatch are shared by all. `auto` takes bfloat16 only where every correlation is at least 0.99.

"""


@dataclass(frozen=True)
class Case:
    """A network with its data; the first of the precisions is the one that others are compared with."""

    title: str
    space: str
    data: str
    budgets: tuple[str, ...]
    tolerance: float
    batch_size: int
    precisions: tuple[str, ...] = ("float32", "bf16")
    space_args: Mapping[str, int] = field(default_factory=dict)


CASES = {
    "wrn": Case("WRN-40-2", SPACE, "cifar10", ("200K", "400K", "800K"), 0.025, 128, ("float64", "float32", "bf16")),
    "resnet34": Case("ResNet-34", "search_spaces.resnet:ResNetSpace", "imagenet", ("3.08M",), 0.025, 64),
    "mask_rcnn": Case(
        "Mask R-CNN over ResNet-34, images half as high and wide as usual",
        "search_spaces.mask_rcnn:MaskRCNNSpace",
        "coco",
        ("60%",),
        0.025,
        2,
        space_args={"min_size": 400, "max_size": 667},
    ),
}


def main() -> None:
    """Score, one architecture after the other, and keep the table up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=CASES, default="wrn")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--work", required=True, help="folder for the scores")
    parser.add_argument("--samples", type=int, default=300, help="architectures a budget")
    parser.add_argument("--batch-size", type=int, help="default: that of the network's search")
    options = parser.parse_args()
    case = CASES[options.network]
    case = replace(case, batch_size=options.batch_size or case.batch_size)
    torch.set_num_threads(1)
    table = cost_table(case.space, case.space_args)
    samples = {
        budget: [
            table.names(indices)
            for indices in Sampler(table, Budget.parse(budget, case.tolerance)).sample(
                options.samples, np.random.default_rng(0)
            )
        ]
        for budget in case.budgets
    }
    ways = {
        precision: Way(case, precision, options.data_root, Path(options.work) / options.network / precision)
        for precision in case.precisions
    }
    for done in range(1, options.samples + 1):
        for candidates in samples.values():
            for way in ways.values():
                way.score(candidates[done - 1])
        if done % EVERY == 0 or done == options.samples:
            names = {budget: [spell(one) for one in candidates[:done]] for budget, candidates in samples.items()}
            write_section(section(case, names, ways))
            print(f"{done} of {options.samples} architectures a budget", flush=True)


class Way:
    """One precision: what measures in it, and what was found."""

    def __init__(self, case: Case, precision: str, data_root: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        settings = ScoreSettings(
            space=case.space, space_args=case.space_args, data=case.data, data_root=data_root, device="cpu",
            precision=precision, batch_size=case.batch_size,
        )  # fmt: skip
        self._scorer = Scorer(settings, make_task(case.data, data_root), make_proxy("fisher"))
        self._measure: Measure | None = None
        self._scores = Journal(folder, {"batch": self._scorer.fingerprint, "precision": precision})
        self._times = folder / "seconds.txt"

    def score(self, choices: dict[str, str]) -> None:
        """Bring it into the journal, if it is not there, and into the times."""
        if (0, spell(choices)) in self._scores:
            return
        if self._measure is None:
            work = self._scorer.work(0)
            self._measure = choose(work).start(work)()
        start = time.process_time()
        self._scores.add(0, spell(choices), self._measure(choices))
        with self._times.open("a") as stream:
            stream.write(f"{time.process_time() - start:.3f}\n")

    def values(self, names: Sequence[str]) -> np.ndarray:
        """The scores of ``names``."""
        return np.array([self._scores[0, name].value for name in names])

    @property
    def seconds(self) -> float:
        """Of the processor for one architecture: the median."""
        return float(np.median([float(line) for line in self._times.read_text().split()]))


def spell(choices: dict[str, str]) -> str:
    """An architecture's name in the journal."""
    return " ".join(choices.values())


def section(case: Case, names: dict[str, list[str]], ways: dict[str, Way]) -> str:
    """The network's part of the page, in Markdown."""
    highest, *lower = case.precisions
    rows = []
    for budget, found in names.items():
        exact = ways[highest].values(found)
        rows.append(f"| {budget} | {len(found)} | {highest} | | | | {ways[highest].seconds:.2f} |")
        for precision in lower:
            values = ways[precision].values(found)
            common = len(set(np.argsort(-exact)[:BEST]) & set(np.argsort(-values)[:BEST]))
            rows.append(
                f"| {budget} | {len(found)} | {precision} | {spearmanr(exact, values).statistic:.5f} | {common} "
                f"| {100 * np.median(np.abs(values / exact - 1)):.2f} % | {ways[precision].seconds:.2f} |"
            )
    about = (
        f"Parameters within {100 * case.tolerance:g} % of the budget, batch {case.batch_size} of {case.data}; "
        "errors of a score and seconds are medians.\n"
        f"{processor()}; PyTorch {torch.__version__}; one thread, each architecture in each precision in turn.\n"
    )
    return f"## {case.title}\n\n{about}{COLUMNS.format(highest=highest)}" + "\n".join(rows) + "\n"


def write_section(section: str) -> None:
    """Replace the part with the heading of ``section``, and leave the others."""
    found: dict[str, str] = {}
    text = RESULTS.read_text() if RESULTS.exists() else ""
    for part in ("\n" + text).split("\n## ")[1:]:
        found[part.splitlines()[0]] = f"## {part.rstrip()}\n"
    found[section.splitlines()[0].removeprefix("## ")] = section
    write_text(RESULTS, HEADER + "\n".join(found.values()))


if __name__ == "__main__":
    main()

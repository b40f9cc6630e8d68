"""Does Fisher potential in lower precision rank as float64 does? WRN-40-2, batch 128 of CIFAR-10, three budgets.

Scores the same random architectures in float64, float32 and bfloat16, all with the same weights and minibatch, and
writes Spearman's correlation with float64 and the overlap of the ten best to benchmarks/results/precision.md, anew
after every thirty. The work folder keeps all scores; the same command goes on where it was stopped. An hour on two
cores.

    nice python benchmarks/precision.py --data-root data/cifar10 --work /tmp/precision
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor  # noqa: E402
from nni_blockswap.architecture import cost_table  # noqa: E402
from nni_blockswap.cost.budget import Budget  # noqa: E402
from nni_blockswap.files import write_text  # noqa: E402
from nni_blockswap.methods.sampler import Sampler  # noqa: E402
from nni_blockswap.results.journal import Journal  # noqa: E402
from nni_blockswap.scoring.proxies import make_proxy  # noqa: E402
from nni_blockswap.scoring.scorer import Scorer  # noqa: E402
from nni_blockswap.scoring.settings import ScoreSettings  # noqa: E402
from nni_blockswap.tasks import make_task  # noqa: E402

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
BUDGETS, TOLERANCE, CHUNK = ("200K", "400K", "800K"), 0.025, 30
PRECISIONS = ("float64", "float32", "bf16")
HEADER = """# Precision

Fisher potential in lower precision against float64: WRN-40-2, parameters within 2.5 % of the budget, batch 128 of
CIFAR-10 with training augmentation, one draw of the weights, seed 0. Weights and minibatch are shared by all.

`auto` takes bfloat16 only where every correlation is at least 0.99.

| budget | architectures | precision | Spearman with float64 | of the 10 best in common | median error of a score |
|---|---|---|---|---|---|
"""


def main() -> None:
    """Score, chunk after chunk, and keep the table up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--work", required=True, help="folder for the scores")
    parser.add_argument("--samples", type=int, default=300, help="architectures a budget")
    parser.add_argument("--processes", type=int, help="side by side; default one a core")
    options = parser.parse_args()
    table = cost_table(SPACE)
    task = make_task("cifar10", options.data_root)
    scorers, journals = {}, {}
    for precision in PRECISIONS:
        settings = ScoreSettings(
            space=SPACE, data="cifar10", device="cpu", precision=precision, processes=options.processes
        )
        scorers[precision] = Scorer(settings, task, make_proxy("fisher"))
        folder = Path(options.work) / precision
        folder.mkdir(parents=True, exist_ok=True)
        journals[precision] = Journal(folder, {"batch": scorers[precision].fingerprint, "precision": precision})
    samples = {
        budget: Sampler(table, Budget.parse(budget, TOLERANCE)).sample(options.samples, np.random.default_rng(0))
        for budget in BUDGETS
    }
    for start in range(0, options.samples, CHUNK):
        chunk = [table.names(indices) for budget in BUDGETS for indices in samples[budget][start : start + CHUNK]]
        for precision, scorer in scorers.items():
            score(scorer, journals[precision], chunk)
        done = {budget: [spell(table.names(i)) for i in found[: start + CHUNK]] for budget, found in samples.items()}
        write_text(ROOT / "benchmarks" / "results" / "precision.md", report(done, journals))
        print(f"{min(start + CHUNK, options.samples)} of {options.samples} architectures a budget", flush=True)


def score(scorer: Scorer, journal: Journal, candidates: Sequence[dict[str, str]]) -> None:
    """Bring what is missing into the journal."""
    missing = [choices for choices in candidates if (0, spell(choices)) not in journal]
    for position, found in scorer.scores(0, missing) if missing else ():
        journal.add(0, spell(missing[position]), found)


def spell(choices: dict[str, str]) -> str:
    """An architecture's name in the journal."""
    return " ".join(choices.values())


def report(done: dict[str, list[str]], journals: dict[str, Journal]) -> str:
    """The table, in Markdown."""
    rows = []
    for budget, names in done.items():
        exact = np.array([journals["float64"][0, name].value for name in names])
        for precision in PRECISIONS[1:]:
            found = np.array([journals[precision][0, name].value for name in names])
            common = len(set(np.argsort(-exact)[:10]) & set(np.argsort(-found)[:10]))
            correlation = spearmanr(exact, found).statistic
            error = np.median(np.abs(found / exact - 1))
            rows.append(
                f"| {budget} | {len(names)} | {precision} | {correlation:.5f} | {common} | {100 * error:.2f} % |"
            )
    machine = f"{processor()}, PyTorch {torch.__version__}"
    return HEADER + "\n".join(rows) + f"\n\nMachine: {machine}. Written by `benchmarks/precision.py`.\n"


if __name__ == "__main__":
    main()

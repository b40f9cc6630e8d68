"""How well each proxy ranks networks of the paper's kind: random ones in one band of parameters, trained here.

Draws architectures of a small wide ResNet's space, trains each from fresh weights, by cross-entropy or by attention
transfer from a ``--teacher`` (the trial's own program, a process a core), and a few of them from three seeds, so that
it is known what is noise; then correlates every proxy's scores with the errors, as ``blockswap rank-study`` does, from
one draw of the weights and from five, and those of a library, taught by that teacher, or by the original, which is
trained like the others. All of it is kept in OUT: the same command goes on where it was stopped.

    nice python benchmarks/rank_quality.py --data-root data/cifar10 --out out

Sixty architectures take two cores about three hours. Writes OUT/correlations.md and, of 30 or more,
benchmarks/results/rank_quality.md; another set of networks is kept beside it by another ``--name``.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import rankdata

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from nni_blockswap.architecture import Architecture  # noqa: E402
from nni_blockswap.cost.budget import Budget  # noqa: E402
from nni_blockswap.files import read_json, write_text  # noqa: E402
from nni_blockswap.library import choosing  # noqa: E402
from nni_blockswap.library.building import build  # noqa: E402
from nni_blockswap.library.library import Library  # noqa: E402
from nni_blockswap.library.settings import LibrarySettings  # noqa: E402
from nni_blockswap.methods.sampler import Sampler  # noqa: E402
from nni_blockswap.results.tables import write_figure  # noqa: E402
from nni_blockswap.scoring.proxies import PROXIES  # noqa: E402
from nni_blockswap.scoring.settings import ScoreSettings  # noqa: E402
from nni_blockswap.spaces import complete_args, cost_table  # noqa: E402
from nni_blockswap.studies.rank_study import Correlation, Trained, rank_study, scatter, table  # noqa: E402

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
ASKED = ("depth", "width", "image_size", "images", "epochs", "precision", "budget", "architectures", "name")
TOLERANCE = 0.025
PUBLISHED = 30
"""So many architectures, at least, make a table of benchmarks/results."""

REPEATED, SEEDS = 5, 3
"""Architectures that are trained several times, and how often."""

COMBINATIONS = ("fisher+macs", "fisher+naswot", "fisher_channel+naswot", "taylor+naswot")
DRAWS = (1, 5)
DRAWN = ("fisher", "macs", "naswot", "library_log")
"""Proxies in the picture."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that say what is trained, and where it is."""
    command = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--data-root", required=True, metavar="DIR", help="folder of CIFAR-10")
    command.add_argument("--out", required=True, type=Path, metavar="DIR")
    command.add_argument("--budget", default="60K", help="parameters of all of them, within 2.5 %% (60K)")
    command.add_argument("--architectures", type=int, default=60)
    command.add_argument("--epochs", type=int, default=12)
    command.add_argument("--depth", type=int, default=16, help="of the wide ResNet (16)")
    command.add_argument("--width", type=int, default=1, help="of the wide ResNet (1)")
    command.add_argument(
        "--teacher", metavar="FILE", help="weights of the original, whose attention all are trained by"
    )
    command.add_argument("--image-size", type=int, default=32, help="pixels that images are scaled to (32)")
    command.add_argument("--images", type=int, default=20_000, help="of CIFAR-10's training set (20,000)")
    command.add_argument("--precision", default="32-true", help="of training (32-true)")
    command.add_argument("--name", default="rank_quality", help="of the files in benchmarks/results (rank_quality)")
    command.add_argument("--jobs", type=int, default=os.cpu_count(), help="trained side by side, a core each")
    return command


def main() -> None:
    """Train, score, correlate, and write."""
    command = parser(__doc__)
    command.add_argument("--proxies", nargs="+", default=[*PROXIES, *COMBINATIONS, *choosing.PROXIES], metavar="NAME")
    given = command.parse_args()
    settings = score_settings(given)
    chosen = draw(settings.space_args, given.budget, given.architectures)
    errors = train_all(chosen, given)
    library = learn(chosen[0].teacher(), given) if set(given.proxies) & set(choosing.PROXIES) else None
    trained = [Trained(one, errors[one.id, 0]) for one in chosen]
    studies = {}
    for inits in DRAWS:
        several = replace(settings, inits=inits)
        studies[inits] = rank_study(trained, several, given.proxies, [1], given.out / f"draws-{inits}", library=library)
    text = report(given, trained, errors, studies)
    write_text(given.out / "correlations.md", text)
    if given.architectures >= PUBLISHED:
        results = ROOT / "benchmarks" / "results"
        write_text(results / f"{given.name}.md", text)
        drawn = [one for one in studies[max(DRAWS)] if one.proxy in DRAWN]
        write_figure(results / f"{given.name}.png", scatter([one.error for one in trained], drawn))
    print(text)


def score_settings(given: argparse.Namespace) -> ScoreSettings:
    """Space, data and images as they were trained."""
    arguments = complete_args(SPACE, {"depth": given.depth, "width": given.width, "image_size": given.image_size})
    size = {"image_size": given.image_size}
    return ScoreSettings(
        space=SPACE, space_args=arguments, data="cifar10", data_root=given.data_root, data_options=size
    )


def draw(arguments: Mapping[str, Any], budget: str, count: int) -> list[Architecture]:
    """Random architectures within the budget; more of them begin with the same."""
    costs = cost_table(SPACE, arguments)
    sampler = Sampler(costs, Budget.parse(budget, TOLERANCE))
    found = [sampler.sample(1, np.random.default_rng([0, number]))[0] for number in range(2 * count)]
    distinct = list(dict.fromkeys(found))[:count]
    return [Architecture.from_indices(SPACE, arguments, costs, indices) for indices in distinct]


def train_all(chosen: Sequence[Architecture], given: argparse.Namespace) -> dict[tuple[str, int], float]:
    """Errors in percent by (architecture's id, seed)."""
    runs = [(one, 0) for one in chosen] + [(one, seed) for one in chosen[:REPEATED] for seed in range(1, SEEDS)]
    with ThreadPoolExecutor(given.jobs) as pool:
        errors = {}
        for (one, seed), error in zip(runs, pool.map(lambda run: train(run[0], run[1], given), runs), strict=True):
            errors[one.id, seed] = error
            print(f"{len(errors)} of {len(runs)}: {error:.2f} % error", flush=True)
    return errors


def train(architecture: Architecture, seed: int, given: argparse.Namespace) -> float:
    """Error in percent of one network, trained from fresh weights."""
    taught = ["--teacher", given.teacher] if given.teacher else ["--beta", 0]
    recipe = [*taught, "--batch-size", 128, "--epochs", given.epochs, "--seed", seed, "--precision", given.precision]
    return trial(architecture, given.out / "trials" / f"{architecture.id}-{seed}", recipe, given)


def trial(architecture: Architecture, out: Path, recipe: Sequence[object], given: argparse.Namespace) -> float:
    """Error in percent of one network by the trial's program with these options; trained unless it is already."""
    if not (out / "result.json").exists():
        architecture.save(out / "asked.json")
        data = ["--data", "cifar10", "--data-root", given.data_root, "--data-option", f"limit={given.images}"]
        data += ["--data-option", f"image_size={given.image_size}", "--data-option", "augment=crop+flip"]
        asked = ["--architecture", out / "asked.json", "--out", out, *data, *recipe]
        with (out / "log").open("a") as log:
            subprocess.run(
                [sys.executable, "-m", "trial.distill", *map(str, asked)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                check=True,
            )
    return 100 - 100 * float(read_json(out / "result.json")["accuracy"])


def learn(teacher: Architecture, given: argparse.Namespace) -> Library:
    """The library whose errors are two of the proxies."""
    settings = LibrarySettings(
        space=SPACE,
        space_args=teacher.space_args,
        teacher=str(taught_by(teacher, given)),
        data="cifar10",
        data_root=given.data_root,
        data_options={"image_size": given.image_size, "limit": given.images},
    )
    return build(settings, given.out / "library")


def taught_by(teacher: Architecture, given: argparse.Namespace) -> Path:
    """The weights of the library's teacher: those given, or trained here like the others."""
    if given.teacher:
        return Path(given.teacher)
    train(teacher, 0, given)
    return Path(given.out / "trials" / f"{teacher.id}-0" / "weights.pt")


def noise(trained: Sequence[Trained], errors: Mapping[tuple[str, int], float]) -> tuple[float, float]:
    """Standard deviation of the errors between architectures, and between seeds of one."""
    repeated = [[errors[one.architecture.id, seed] for seed in range(SEEDS)] for one in trained[:REPEATED]]
    return stdev(one.error for one in trained), mean(stdev(one) ** 2 for one in repeated) ** 0.5


def command(given: argparse.Namespace) -> str:
    """What gives the same tables."""
    asked = [f"--{name.replace('_', '-')} {getattr(given, name)}" for name in ASKED]
    asked += ["--teacher teacher/weights.pt"] if given.teacher else []
    return " ".join(["nice python benchmarks/rank_quality.py --data-root data/cifar10 --out out", *asked])


def report(
    given: argparse.Namespace,
    trained: Sequence[Trained],
    errors: Mapping[tuple[str, int], float],
    studies: Mapping[int, Sequence[Correlation]],
) -> str:
    """All of it in Markdown."""
    between, within = noise(trained, errors)
    verdict = "enough" if between > 2 * within else "too little: train longer, or on more images"
    ceiling = max(0.0, 1 - (within / between) ** 2) ** 0.5
    final = [one.error for one in trained]
    kept = [list(one.architecture.choices.values()).count("S") for one in trained]
    rho = np.corrcoef(rankdata(kept), rankdata(final))[0, 1]
    by = "cross-entropy and attention transfer from a teacher" if given.teacher else "cross-entropy"
    like = "" if given.teacher else " like that"
    parts = [
        f"""# How well each proxy ranks networks of the paper's kind

{len(trained)} random architectures of WRN-{given.depth}-{given.width}'s space, {given.budget} parameters within \
{TOLERANCE:.1%}.
Trained from fresh weights for {given.epochs} epochs by {by}, on {given.images:,} images of CIFAR-10.
Images are scaled to {given.image_size} x {given.image_size} pixels; precision {given.precision}.
The proxies `library` and `library_log` are the errors of a library that the original, trained{like}, has taught.

* Error in percent: {min(final):.1f} to {max(final):.1f}.
* Its standard deviation: {between:.2f} between architectures, {within:.2f} between {SEEDS} seeds of one; {verdict}.
* A perfect ranking would have a correlation of about {ceiling:.2f} with errors as noisy as these.
* The number of blocks that keep `S` has {rho:+.2f} with the error.
* Command: `{command(given)}`.
"""
    ]
    for inits, found in studies.items():
        parts.append(f"Draws of the weights: {inits}.\n\n{table(found)}\n")
    parts.append(f"![error against score]({given.name}.png), {', '.join(DRAWN)}, {max(DRAWS)} draws.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()

"""Which form of a library's errors ranks best: their sum, that of logarithms, or one fitted to assembled students.

Takes the options, and the folder OUT, of ``rank_quality.py``, which has to be done. Ranks its networks

- by each form, the fitted one with a weight of at least 0 for each block (non-negative least squares) from the
  errors of ``FITTED`` other students of the same budget, assembled from the library and not trained;
- by the error of each network itself, assembled and not trained;

and correlates that with the errors after training from fresh weights, and after an epoch of distillation from the
library's. Writes OUT/forms.md and, of 30 or more, benchmarks/results/rank_forms.md, or of the ``--name`` given.

    nice python benchmarks/rank_forms.py --data-root data/cifar10 --out out
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.rank_causes import spelled  # noqa: E402
from benchmarks.rank_quality import PUBLISHED, command, draw, learn, parser, score_settings, taught_by, train, trial  # noqa: E402
from nni_blockswap.architecture import Architecture  # noqa: E402
from nni_blockswap.files import read_json, write_json, write_text  # noqa: E402
from nni_blockswap.library.assembling import assemble  # noqa: E402
from nni_blockswap.library.library import Library  # noqa: E402
from nni_blockswap.results.tables import markdown  # noqa: E402
from nni_blockswap.spaces import cost_table  # noqa: E402
from nni_blockswap.tasks import make_task  # noqa: E402
from nni_blockswap.training import checkpoints  # noqa: E402
from nni_blockswap.training.classification import ImageTraining  # noqa: E402
from nni_blockswap.training.machine import Machine  # noqa: E402
from nni_blockswap.training.recipe import Recipe  # noqa: E402
from nni_blockswap.training.running import evaluate  # noqa: E402
from nni_blockswap.training.unwrapping import weights_of  # noqa: E402

FITTED = 40
"""Assembled students that the weights are fitted to; none of them is one of those that are ranked."""

Floats = NDArray[np.float64]


def main() -> None:
    """Assemble, fit, train for an epoch, correlate, and write."""
    options = parser(__doc__)
    options.add_argument(
        "--warm", type=int, default=24, help="networks that are trained from the library's weights (24)"
    )
    given = options.parse_args()
    drawn = draw(score_settings(given).space_args, given.budget, given.architectures + FITTED)
    ranked, others = drawn[: given.architectures], drawn[given.architectures :]
    fresh = [train(one, 0, given) for one in ranked]
    library = learn(drawn[0].teacher(), given)
    assembled = [error_assembled(one, library, given) for one in drawn]
    with ThreadPoolExecutor(given.jobs) as pool:
        warm = list(pool.map(lambda one: train_warm(one, library, given), ranked[: given.warm]))
    terms = block_errors(drawn, library)
    weights = fitted(terms[given.architectures :], assembled[given.architectures :])
    forms = {
        "sum of errors (`library`)": terms.sum(1),
        "sum of logarithms (`library_log`)": block_errors(drawn, library, "log").sum(1),
        f"weighted sum, fitted to {len(others)} others, assembled": terms @ weights,
        "error of the network itself, assembled": np.array(assembled),
    }
    rows: list[tuple[str, ...]] = [
        (
            "ranked by",
            f"after {given.epochs} epochs from fresh weights",
            f"{len(warm)} after 1 epoch from the library's",
        )
    ]
    for form, scores in forms.items():
        rows.append((form, *(spelled(scores[: len(errors)].tolist(), errors) for errors in (fresh, warm))))
    text = f"""# Which form of a library's errors ranks best

The networks of [{given.name}.md]({given.name}.md): {len(ranked)} random ones, within {given.budget} parameters.
Spearman's correlation with their error (95 % bootstrap interval); +1 is perfect. Assembled, they have
{min(assembled):.1f} to {max(assembled):.1f} % error, after an epoch from there {min(warm):.1f} to {max(warm):.1f} %.

{markdown(rows)}

Weights of the blocks in the fitted form: {", ".join(f"{weight:.1f}" for weight in weights)}.

`{command(given).replace("rank_quality.py", "rank_forms.py")}`
"""
    write_text(given.out / "forms.md", text)
    if given.architectures >= PUBLISHED:
        name = given.name.replace("quality", "forms")
        write_text(ROOT / "benchmarks" / "results" / f"{name}.md", text)
    print(text)


def error_assembled(architecture: Architecture, library: Library, given: argparse.Namespace) -> float:
    """Error in percent on the validation set as the library's blocks make it; kept."""
    path = given.out / "assembled" / f"{architecture.id}.json"
    if not path.exists():
        teacher = weights_of(checkpoints.read(taught_by(architecture.teacher(), given)))
        task = make_task("cifar10", given.data_root, image_size=given.image_size, limit=given.images)
        module = ImageTraining(assemble(architecture, teacher, library), task, Recipe())
        write_json(path, 100 * (1 - evaluate(module, Machine())))
    return float(read_json(path))


def train_warm(architecture: Architecture, library: Library, given: argparse.Namespace) -> float:
    """Error in percent after one epoch of logit distillation from the library's weights."""
    teacher = taught_by(architecture.teacher(), given)
    recipe = ["--init", f"library={library.folder}", "--teacher", teacher, "--beta", 0, "--kd", 1, "--lr", 0.03]
    recipe += ["--schedule", "cosine_steps", "--batch-size", 128, "--epochs", 1]
    return trial(architecture, given.out / "warm" / architecture.id, recipe, given)


def block_errors(architectures: Sequence[Architecture], library: Library, form: str = "sum") -> Floats:
    """What the block at each place of each architecture errs; (architectures, blocks)."""
    table = cost_table(library.about["space"], library.about["space_args"])
    values = [np.array(block) for block in library.values(table, form)]
    rows = [table.index(one.choices) for one in architectures]
    return np.array([[block[index] for block, index in zip(values, row, strict=True)] for row in rows])


def fitted(terms: Floats, errors: Sequence[float]) -> Floats:
    """Weights w >= 0 of the blocks for which constant + terms w is nearest to ``errors`` in least squares."""
    constant = np.ones((len(terms), 1))
    solution, _ = nnls(np.hstack([terms, constant]), np.array(errors))
    return np.asarray(solution[:-1])


if __name__ == "__main__":
    main()

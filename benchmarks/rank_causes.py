"""What it hangs on whether Fisher potential ranks: the trained networks of ``rank_quality.py``, scored in other ways.

Its correlation with the error under other minibatches, sizes of images and numbers of training steps; of each block
alone; and with the error after fewer epochs. Takes the options, and the folder OUT, of ``rank_quality.py``, which has
to be done; scores are kept there. Writes OUT/causes.md and, of 30 or more,
benchmarks/results/rank_causes.md, or of the ``--name`` given.

    python benchmarks/rank_causes.py --data-root data/cifar10 --out out
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.rank_quality import PUBLISHED, command, draw, noise, parser, score_settings, train_all  # noqa: E402
from nni_blockswap.architecture import Architecture  # noqa: E402
from nni_blockswap.files import write_text  # noqa: E402
from nni_blockswap.results.tables import markdown  # noqa: E402
from nni_blockswap.scoring.proxies import Score  # noqa: E402
from nni_blockswap.scoring.settings import ScoreSettings  # noqa: E402
from nni_blockswap.searching import score  # noqa: E402
from nni_blockswap.spaces import complete_args  # noqa: E402
from nni_blockswap.studies.rank_study import Trained, bootstrap_interval, spearman  # noqa: E402

DRAWS = 5
USUAL = "as the search scores: batch 128, the size of training, augmented"
CHANGES: dict[str, dict[str, Any]] = {
    USUAL: {},
    "batch 32": {"batch_size": 32},
    "batch 512": {"batch_size": 512},
    "four minibatches": {"minibatches": 4},
    "not augmented": {"augment": False},
    "after 10 minibatches of training, one draw": {"train_minibatches": 10, "inits": 1},
}
"""Fields of ``ScoreSettings``."""

VARIANTS = "benchmarks.rank_causes_variants"
CHANGES |= {
    "initial weights: C_out divided by the groups": {"space": f"{VARIANTS}:DividedByGroups"},
    "initial weights: by C_in": {"space": f"{VARIANTS}:FanIn"},
    "probes where branch and shortcut have met": {"proxy": f"{VARIANTS}:AfterTheSum"},
}

SIZES = (8, 32)
"""Sides of images that networks are scored at, beside that of their training."""


def main() -> None:
    """Score, correlate, and write."""
    given = parser(__doc__).parse_args()
    usual = replace(score_settings(given), inits=DRAWS)
    chosen = draw(usual.space_args, given.budget, given.architectures)
    errors = train_all(chosen, given)
    trained = [Trained(one, errors[one.id, 0]) for one in chosen]
    final = [one.error for one in trained]
    ways = {way: scores(chosen, replace(usual, **changes), given.out) for way, changes in CHANGES.items()}
    ways |= {f"images of {size} x {size}": scores(chosen, at_size(usual, size), given.out) for size in SIZES}
    rows = [("Fisher potential", "rho with the error"), *((way, rho(found, final)) for way, found in ways.items())]
    between, within = noise(trained, errors)
    causes = given.name.replace("quality", "causes")
    text = f"""# What Fisher potential's ranking hangs on

The networks of [{given.name}.md]({given.name}.md): {len(trained)} random ones, within {given.budget} parameters.
Spearman's correlation with their error (95 % bootstrap interval), mean over {DRAWS} draws of the weights where
nothing else is said; -1 is perfect. Errors differ by {between:.2f} between networks
and {within:.2f} between seeds of one.

{markdown(rows)}

{markdown(list(of_blocks(ways[USUAL], final)))}

{markdown(list(after_epochs(ways[USUAL], chosen, given)))}

`{command(given).replace("rank_quality.py", "rank_causes.py")}`
"""
    write_text(given.out / "causes.md", text)
    if given.architectures >= PUBLISHED:
        write_text(ROOT / "benchmarks" / "results" / f"{causes}.md", text)
    print(text)


def at_size(settings: ScoreSettings, size: int) -> ScoreSettings:
    """The same networks on images of another size."""
    arguments = complete_args(settings.space, {**settings.space_args, "image_size": size})
    return replace(settings, space_args=arguments, data_options={"image_size": size})


def scores(chosen: Sequence[Architecture], settings: ScoreSettings, out: Path) -> list[Score]:
    """Of each network, kept below ``out``."""
    changed = "-".join(
        f"{name}={value}"
        for name, value in (
            ("batch", settings.batch_size), ("minibatches", settings.minibatches), ("augment", settings.augment),
            ("train", settings.train_minibatches), ("size", settings.space_args["image_size"]),
            ("space", settings.space.rpartition(":")[2]), ("proxy", settings.proxy.rpartition(":")[2]),
        )
    )  # fmt: skip
    return score(settings, [one.choices for one in chosen], out / "causes" / changed)


def rho(found: Sequence[Score], errors: Sequence[float]) -> str:
    """Spearman's coefficient and its interval."""
    return spelled([one.value for one in found], errors)


def spelled(values: Sequence[float], errors: Sequence[float]) -> str:
    """Such as ``-0.61 (-0.75 to -0.42)``."""
    a, b = np.array(values), np.array(errors)
    low, high = bootstrap_interval(a, b)
    return f"{spearman(a, b)[0]:+.2f} ({low:+.2f} to {high:+.2f})"


def of_blocks(found: Sequence[Score], errors: Sequence[float]) -> Iterator[tuple[object, ...]]:
    """Each block's part alone: its share of the sum, and its correlations."""
    yield "block", "share of the sum", "rho with the error", "rho with the sum"
    parts = np.array([one.blocks for one in found])
    total = parts.sum(1)
    for block, column in enumerate(parts.T):
        share = float((column / total).mean())
        yield block, f"{share:.0%}", spelled(column.tolist(), errors), f"{spearman(column, total)[0]:+.2f}"


def after_epochs(
    found: Sequence[Score], chosen: Sequence[Architecture], given: argparse.Namespace
) -> Iterator[tuple[object, ...]]:
    """Correlation with the error after so many epochs, of Fisher potential and of MACs."""
    curves = [curve(given.out / "trials" / f"{one.id}-0" / "tensorboard") for one in chosen]
    costs: Mapping[str, list[float]] = {
        "Fisher potential": [one.value for one in found],
        "MACs": [float(one.macs) for one in chosen],
    }
    yield "epochs", *costs
    for epoch in sorted({1, given.epochs // 4, given.epochs // 2, given.epochs}):
        errors = [100 - 100 * one[epoch - 1] for one in curves]
        yield epoch, *(spelled(values, errors) for values in costs.values())


def curve(folder: Path) -> list[float]:
    """Validation accuracy after each epoch."""
    board = EventAccumulator(str(folder))
    board.Reload()
    return [one.value for one in board.Scalars("val/accuracy")]


if __name__ == "__main__":
    main()

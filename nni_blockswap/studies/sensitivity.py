"""Which block is best cheapened: one block swapped at a time (appendix B)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nni_blockswap.architecture import Architecture
from nni_blockswap.conversation import OnProgress, unheard
from nni_blockswap.errors import SpaceError
from nni_blockswap.files import write_text
from nni_blockswap.results.tables import markdown, write_csv, write_figure
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.searching import score
from nni_blockswap.spaces import cost_table, table_of_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def one_swap(settings: ScoreSettings, substitute: str) -> dict[str, Architecture]:
    """The original with ``substitute`` in one block, by that block's label; blocks that it does not fit are left out.

    Raises:
        SpaceError: it fits none, or there is no block.
    """
    costs = table_of_blocks(settings.space, settings.space_args)
    original = costs.names(costs.original())
    found, faults = dict[str, Architecture](), list[SpaceError]()
    for label in costs.labels:
        choices = {**original, label: substitute}
        try:
            found[label] = Architecture.from_choices(settings.space, choices, settings.space_args)
        except SpaceError as error:
            faults.append(error)
    if not found:
        raise faults[0]
    return found


def sensitivity(
    settings: ScoreSettings,
    substitute: str,
    out: str | Path,
    on_progress: OnProgress = unheard,
) -> tuple[Architecture, dict[str, Architecture]]:
    """Score the original and every network that differs from it by ``substitute`` in one block.

    Scores are kept in ``out`` as they come. Writes ``out``/sensitivity.csv, sensitivity.md and sensitivity.png.

    Returns:
        The original, and the others by the label of the swapped block; all scored.
    """
    swapped = one_swap(settings, substitute)
    original = next(iter(swapped.values())).teacher()
    networks = [original, *swapped.values()]
    scores = score(settings, [one.choices for one in networks], out, on_progress)
    first, *others = (one.scored(found.value, {}) for one, found in zip(networks, scores, strict=True))
    by_block = dict(zip(swapped, others, strict=True))
    _write(Path(out), substitute, settings, first, by_block)
    return first, by_block


def rows(settings: ScoreSettings, original: Architecture, by_block: dict[str, Architecture]) -> list[list[object]]:
    """A row a block after a header: widths, score, parameters, MACs, and how they differ from the original's.

    The last row is the original itself.
    """
    costs = cost_table(settings.space, settings.space_args)
    found: list[list[object]] = [
        ["block", "channels", settings.proxy, "change", "params", "params saved", "macs", "macs saved"]
    ]
    for label, one in by_block.items():
        site = costs.sites[costs.labels.index(label)]
        found.append([label, str(site), *_figures(one, original)])
    return [*found, ["none", "", *_figures(original, original)]]


def _figures(one: Architecture, original: Architecture) -> Sequence[object]:
    assert one.score is not None
    assert original.score is not None
    return (
        one.score,
        one.score - original.score,
        one.params,
        original.params - one.params,
        one.macs,
        original.macs - one.macs,
    )


def _write(
    out: Path, substitute: str, settings: ScoreSettings, original: Architecture, by_block: dict[str, Architecture]
) -> None:
    figures = rows(settings, original, by_block)
    write_csv(out / "sensitivity.csv", figures)
    write_text(out / "sensitivity.md", f"One block at a time swapped for {substitute}.\n\n{table(figures)}\n")
    write_figure(out / "sensitivity.png", bars(substitute, settings.proxy, original, by_block))


def table(figures: Sequence[Sequence[object]]) -> str:
    """``rows`` in Markdown, for people to read."""
    return markdown([figures[0], *([_readable(cell) for cell in row] for row in figures[1:])])


def _readable(cell: object) -> object:
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.5g}" if isinstance(cell, float) else cell


def bars(substitute: str, proxy: str, original: Architecture, by_block: dict[str, Architecture]) -> "Figure":
    """The score and the parameters after each swap, a bar a block; the original's as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 0.4 * len(by_block)), 5.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, name, values, reference in (
        (upper, proxy, [one.score for one in by_block.values()], original.score),
        (lower, "parameters", [one.params for one in by_block.values()], original.params),
    ):
        axes.bar(list(by_block), values)
        axes.axhline(reference, color="black", linestyle="--", linewidth=1, label="original")
        axes.set_ylabel(name)
    upper.legend(loc="lower right")
    lower.tick_params(axis="x", rotation=90)
    upper.set_title(f"one block swapped for {substitute}")
    return figure

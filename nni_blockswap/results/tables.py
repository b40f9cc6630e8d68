"""Tables and figures on disk: CSV, Markdown, PNG and SVG, each written atomically."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nni_blockswap.errors import ConfigError
from nni_blockswap.files import write_atomically, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Sequence[object]


def write_csv(path: str | Path, rows: Iterable[Row]) -> None:
    """Write ``rows``, the first of them the header."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    write_text(path, stream.getvalue())


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table of ``rows``, the first of them the header, columns padded so that it reads as plain text too.

    Example:
        >>> print(markdown([("block", "MACs"), ("block_00", 42)]))
        | block    | MACs |
        | -------- | ---- |
        | block_00 | 42   |
    """
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def write_figure(path: str | Path, figure: "Figure") -> None:
    """As PNG or SVG, by the name's ending. Raises ConfigError at another ending."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise ConfigError(f"a picture's name ends in .png or .svg, and '{path}' does not.")
    write_atomically(path, lambda stream: figure.savefig(stream, format=kind, dpi=120))

"""The page of a reproduction: every table and figure that there is, beside what the paper has. HTML without scripts."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from nni_blockswap.files import write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
img { max-width: 100%; }
.paper, .note { color: #666; }
"""


@dataclass(frozen=True)
class Part:
    """A section: its title, what the paper has there, its tables (CSV) and pictures, or why there are none."""

    title: str
    paper: str = ""
    files: Sequence[Path] = ()
    note: str = ""


def write_page(path: Path, title: str, introduction: str, parts: Sequence[Part]) -> None:
    """Write the page; its pictures are linked relative to it."""
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(introduction)}</p>"]
    for part in parts:
        body.append(f"<h2>{escape(part.title)}</h2>")
        if part.paper:
            body.append(f'<p class="paper">The paper: {escape(part.paper)}</p>')
        if part.note:
            body.append(f'<p class="note">{escape(part.note)}</p>')
        body += [_shown(file, path.parent) for file in part.files]
    write_text(
        path,
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n",
    )


def _shown(file: Path, home: Path) -> str:
    if file.suffix == ".png":
        where = escape(os.path.relpath(file, home))
        return f'<p><img src="{where}" alt="{escape(file.stem)}"></p>'
    with file.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(_short(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>\n{chr(10).join(lines)}\n</table>"


def _short(cell: str) -> str:
    """A long decimal fraction with four digits."""
    if "." not in cell or len(cell) < 8:
        return cell
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell

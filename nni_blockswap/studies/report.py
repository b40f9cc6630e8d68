"""Experiments side by side: a table of errors and costs, and error against each cost."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from nni_blockswap.files import write_text
from nni_blockswap.results.tables import markdown, write_csv, write_figure
from nni_blockswap.studies.error_figure import figure, title_of
from nni_blockswap.studies.front import FRONT_TABLE, draw_errors
from nni_blockswap.studies.latency import Timing, measure
from nni_blockswap.studies.trials import Point, Trial, points, read_trials, teacher_point
from nni_blockswap.training.checkpoints import stored_bytes


def report(folders: Iterable[str | Path], out: str | Path, latency_batch: int | None = 1) -> str:
    """Compare all trials below ``folders``. Writes ``out``/report.md, report.csv, trials.csv and report.png.

    Where an experiment searched a front, its front.csv is written there too, with the errors that were reached, and
    front.png draws them against each cost.

    Args:
        latency_batch: images a forward pass when latency is measured; None does not measure it.

    Returns:
        The table in Markdown.
    """
    folders = list(folders)
    trials = read_trials(folders)
    teacher = teacher_point(trials)
    compared = [*points(trials), *([teacher] if teacher is not None else [])]
    first = {point.trials[0].architecture.id: point.trials[0].architecture for point in compared}
    networks: dict[str, Any] = {identity: architecture.build() for identity, architecture in first.items()}
    sizes = {identity: stored_bytes(network) for identity, network in networks.items()}
    latencies = measure(networks, latency_batch) if latency_batch else {}
    rows = _rows(compared, sizes, latencies)
    table, title = markdown([_readable(row) for row in rows]), title_of(trials)
    timed = f" Latency: a batch of {latency_batch} on this machine, all side by side." if latency_batch else ""
    note = f"Size on disk: of the weights.{timed} Both of each line's first architecture."
    folder = Path(out)
    write_text(
        folder / "report.md",
        f"# {title}\n\nError in percent, mean and standard deviation over the trials. {note}\n\n{table}\n",
    )
    write_csv(folder / "report.csv", rows)
    write_csv(folder / "trials.csv", _trial_rows(trials))
    for name, rows in _fronts(folders, trials, folder):
        write_csv(folder / name, rows)
        write_figure((folder / name).with_suffix(".png"), draw_errors(rows, None if teacher is None else teacher.error))
    write_figure(folder / "report.png", figure(compared, latencies, title))
    return table


def _rows(compared: Sequence[Point], sizes: Mapping[str, int], latencies: Mapping[str, Timing]) -> list[list[object]]:
    rows: list[list[object]] = [["method", "variant", "trials", "params", "macs", "error", "error std", "size MB"]]
    if latencies:
        rows[0] += ["latency ms", "latency std ms"]
    for point in compared:
        row: list[object] = [point.method, point.variant, len(point.trials), round(point.params), round(point.macs)]
        first = point.trials[0].architecture.id
        row += [point.error, point.spread, sizes[first] / 1e6]
        if latencies:
            row += [1e3 * latencies[first].mean, 1e3 * latencies[first].spread]
        rows.append(row)
    return rows


def _readable(row: Sequence[object]) -> list[object]:
    def cell(value: object) -> object:
        if isinstance(value, float):
            return f"{value:.2f}"
        return "" if value is None else f"{value:,}" if isinstance(value, int) else value

    return [cell(value) for value in row]


def _trial_rows(trials: Sequence[Trial]) -> list[list[object]]:
    rows: list[list[object]] = [
        ["method", "variant", "seed", "id", "choices", "params", "macs", "error", "teacher error"]
    ]
    for one in trials:
        network = one.architecture
        spelled = " ".join(network.choices.values())
        rows.append([one.method, one.variant, one.seed, network.id, spelled, one.params, network.macs])
        rows[-1] += [one.error, one.teacher_error]
    return rows


def _fronts(
    folders: Iterable[str | Path], trials: Sequence[Trial], out: Path
) -> Iterator[tuple[str, list[list[object]]]]:
    """Name and rows of each front's table below ``folders``, with the mean error of each network that was trained.

    What an earlier report wrote, here or with errors elsewhere, is none of them.
    """
    reached: dict[str, list[float]] = {}
    for one in trials:
        reached.setdefault(one.architecture.id, []).append(one.error)
    found = {path.resolve() for folder in folders for path in Path(folder).rglob(FRONT_TABLE)}
    tables = [
        list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        for path in sorted(found)
        if path.parent != out.resolve()
    ]
    searched = [rows for rows in tables if rows and {"score", "id"} <= set(rows[0]) and "error" not in rows[0]]
    for number, (head, *lines) in enumerate(searched):
        place = head.index("score") + 1
        rows: list[list[object]] = [[*head[:place], "error", *head[place:]]]
        for line in lines:
            errors = reached.get(line[head.index("id")])
            rows.append([*line[:place], mean(errors) if errors else None, *line[place:]])
        name = Path(FRONT_TABLE)
        yield f"{name.stem}{f'_{number + 1}' if number else ''}{name.suffix}", rows

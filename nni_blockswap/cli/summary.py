"""The students of an experiment as a table: costs, score, what they are judged by, latency, size, files."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nni_blockswap.errors import StateError
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.layout import CHECKPOINT, STUDENTS
from nni_blockswap.experiment.service import results
from nni_blockswap.experiment.students import LOST, SUCCEEDED, Student, read
from nni_blockswap.metric import Metric, judged

MEASURED = 20
"""Networks that are measured; of more it would take minutes."""


def print_students(folder: Path, config: Config) -> bool:
    """Print what is known of each student in an experiment's folder; whether every one of them came to an end."""
    try:
        students = read(folder / CHECKPOINT / STUDENTS)[: config.content.get("maxTrialNumber")]
    except OSError:
        return False  # the search failed, and the person has been told why
    ended = results(folder)
    metric = next((judged(result)[0] for _, result in ended.values()), config.metric)
    heading = "student", "parameters", "MACs", _score_heading(config), str(metric), "ms", "MB", "files"
    rows: list[tuple[str, ...]] = [heading]
    measured = _measured([student for student in students if student.id in ended])
    rows += [_row(student, metric, measured, *ended.get(student.id, ("", {}))) for student in students]
    rows.append(_teacher(students[0].parameters, [result for _, result in ended.values()], metric, measured))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for name, *figures, files in rows:
        cells = [text.rjust(width) for text, width in zip(figures, widths[1:], strict=False)]
        print("  ".join([name.ljust(widths[0]), *cells, files]).rstrip())
    if measured:
        print("\nms: one image at a time on this machine, all networks side by side. MB: of the weights on disk.")
    print("\nEach folder holds architecture.json, result.json, weights.pt and TensorBoard's curves.")
    if any(student.state == LOST and student.id not in ended for student in students):
        print(f"Lost is a student whose trials were ended from outside; nnictl resume {folder.name} trains it.")
    return all(student.state == SUCCEEDED or student.id in ended for student in students)


def _score_heading(config: Config) -> str:
    """The proxy's name; in a comparison, where each method scores by its own, what all of them have in common."""
    if config.arguments.get("comparison"):
        return "score"
    proxy = config.arguments.get("proxy", "fisher")
    return "Fisher potential" if proxy == "fisher" else str(proxy)


def _measured(students: Sequence[Student]) -> dict[str, tuple[str, str]]:
    """Milliseconds and megabytes of the networks of ``students`` and of their teachers, by architecture id."""
    from nni_blockswap.architecture import Architecture  # which imports torch
    from nni_blockswap.studies.latency import measure
    from nni_blockswap.training.checkpoints import stored_bytes

    trained = [Architecture.from_parameters(student.parameters) for student in students]
    found = {one.id: one for one in (*trained, *(one.teacher() for one in trained))}
    if not 0 < len(found) <= MEASURED:
        return {}
    networks: dict[str, Any] = {identity: one.build() for identity, one in found.items()}
    return {
        identity: (f"{1e3 * latency.mean:.2f}", f"{stored_bytes(networks[identity]) / 1e6:.2f}")
        for identity, latency in measure(networks).items()
    }


def _row(
    student: Student,
    metric: Metric,
    measured: Mapping[str, tuple[str, str]],
    folder: Path | str,
    result: dict[str, Any],
) -> tuple[str, ...]:
    given = student.parameters
    score = "" if given["score"] is None else f"{given['score']:.4g}"
    found = student.accuracy
    with suppress(StateError):  # no result yet, or one of a trial of the user's own
        metric, found = judged(result)  # the tuner may not have heard of it yet
    shown = student.state if found is None else metric.show(found)
    costs = f"{given['params']:,}", f"{given['macs']:,}"
    return student.name, *costs, score, shown, *measured.get(given["architecture_id"], ("", "")), str(folder)


def _teacher(
    given: dict[str, Any],
    ended: list[dict[str, Any]],
    metric: Metric,
    measured: Mapping[str, tuple[str, str]],
) -> tuple[str, ...]:
    from nni_blockswap.architecture import Architecture  # which imports torch

    original = Architecture.from_parameters(given).teacher()
    key = f"teacher_{metric.key}"
    reached = next((metric.show(one[key]) for one in ended if key in one), "")
    costs = f"{original.params:,}", f"{original.macs:,}"
    return "teacher", *costs, "", reached, *measured.get(original.id, ("", "")), ""

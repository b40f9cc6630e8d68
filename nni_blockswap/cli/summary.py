"""The students of an experiment as a table: costs, score, what they are judged by, files."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from nni_blockswap.errors import StateError
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.service import CHECKPOINT, results
from nni_blockswap.experiment.students import LOST, SUCCEEDED, Student, read
from nni_blockswap.metric import Metric, judged


def print_students(folder: Path, config: Config) -> bool:
    """Print what is known of each student in an experiment's folder; whether every one of them came to an end."""
    try:
        students = read(folder / CHECKPOINT / "students.json")[: config.content.get("maxTrialNumber")]
    except OSError:
        return False  # the search failed, and the person has been told why
    ended = results(folder)
    proxy = config.arguments.get("proxy", "fisher")
    score = "Fisher potential" if proxy == "fisher" else proxy
    rows: list[tuple[str, ...]] = [("student", "parameters", "MACs", score, str(config.metric), "files")]
    rows += [_row(student, config.metric, *ended.get(student.id, ("", {}))) for student in students]
    rows.append(_teacher(students[0].parameters, [result for _, result in ended.values()], config.metric))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for name, *figures, files in rows:
        cells = [text.rjust(width) for text, width in zip(figures, widths[1:], strict=False)]
        print("  ".join([name.ljust(widths[0]), *cells, files]).rstrip())
    print("\nEach folder holds architecture.json, result.json, weights.pt and TensorBoard's curves.")
    if any(student.state == LOST and student.id not in ended for student in students):
        print(f"Lost is a student whose trials were ended from outside; nnictl resume {folder.name} trains it.")
    return all(student.state == SUCCEEDED or student.id in ended for student in students)


def _row(student: Student, metric: Metric, folder: Path | str, result: dict[str, Any]) -> tuple[str, ...]:
    given = student.parameters
    score = "" if given["score"] is None else f"{given['score']:.4g}"
    found = student.accuracy
    with suppress(StateError):  # no result yet, or one of a trial of the user's own
        metric, found = judged(result)  # the tuner may not have heard of it yet
    shown = student.state if found is None else metric.show(found)
    return student.name, f"{given['params']:,}", f"{given['macs']:,}", score, shown, str(folder)


def _teacher(given: dict[str, Any], results: list[dict[str, Any]], metric: Metric) -> tuple[str, ...]:
    from nni_blockswap.architecture import Architecture  # which imports torch

    original = Architecture.from_parameters(given).teacher()
    key = f"teacher_{metric.key}"
    reached = next((metric.show(one[key]) for one in results if key in one), "")
    return "teacher", f"{original.params:,}", f"{original.macs:,}", "", reached, ""

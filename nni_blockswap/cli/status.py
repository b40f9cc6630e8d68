"""Tell how far experiments are: search, trials, faults. On a terminal it keeps itself up to date until Ctrl-C.

Without an ID: every experiment that runs on this machine, started by nnictl or by blockswap run.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nni_blockswap.cli.following import OVER, last_line, name_of, reason, result_of, search_text
from nni_blockswap.cli.terminal import Lines, spell_time
from nni_blockswap.errors import StateError
from nni_blockswap.experiment.layout import CHECKPOINT, ERROR, STUDENTS
from nni_blockswap.experiment.service import Experiment, curves, experiment_folder, known_experiments, paces, results
from nni_blockswap.experiment.students import Student, read
from nni_blockswap.files import read_json
from nni_blockswap.metric import Metric, judged
from nni_blockswap.results.trial import EPOCHS, SETTINGS, metric_in

PERIOD = 2.0
"""Seconds between two looks."""
PATIENCE = 10.0
"""Seconds for whatever is at the port of an experiment to answer: long ended, it may have left the port to another."""
ENDED = ("DONE", "ERROR", "STOPPED", "VIEWED")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("experiment", nargs="?", metavar="ID", help="as nnictl shows it (default: all that run)")


def run(options: argparse.Namespace) -> int:
    """Show it once, or again and again."""
    if options.experiment is not None:
        experiment_folder(options.experiment)  # raises where there is none
    with Lines() as lines:
        while True:
            told, over = look(options.experiment)
            lines.update(*told)
            if over or not sys.stdout.isatty():
                return 0
            with suppress(KeyboardInterrupt):
                time.sleep(PERIOD)
                continue
            return 0


def look(identity: str | None) -> tuple[list[str], bool]:
    """What there is to say of an experiment, or of all that run; and whether it will not change any more."""
    known = known_experiments()
    asked = known if identity is None else known.keys() & {identity}
    running = {name: found for name in asked if (found := _running(known[name])) is not None and found.id == name}
    if identity is not None and identity not in running:
        return list(_at_rest(identity, known.get(identity, {}))), True
    if not running:
        return ["No experiment is running; nnictl experiment list --all names those that were."], True
    states = [experiment.get("check-status") for experiment in running.values()]
    told = [line for found in zip(running.values(), states, strict=True) for line in _at_work(*found)]
    return told, all(state["status"] in ENDED for state in states)


def _running(entry: dict[str, Any]) -> Experiment | None:
    """The experiment behind NNI's note of it, where its manager answers."""
    if entry.get("status") == "STOPPED" or not isinstance(entry.get("port"), int):
        return None
    try:
        return Experiment(entry["port"], PATIENCE)
    except (StateError, KeyError, TypeError):
        return None


def _at_work(experiment: Experiment, state: Mapping[str, Any]) -> Iterator[str]:
    """Lines about a running one, of which NNI's manager says that its state is ``state``."""
    settings = experiment.get("experiment").get("params", {})
    named = settings.get("experimentName") or "experiment"
    yield f"{experiment.id}  {named}  {state['status']}  http://localhost:{experiment.port}"
    yield f"  search: {search_text(experiment.folder)}"
    metrics, trials = experiment.metrics(), experiment.trials()
    curve_of, pace_of = curves(metrics), paces(metrics)
    metric = _metric(settings)
    for trial in trials:
        metric = metric_in(experiment.trial_folder(trial["trialJobId"]), metric)
    for trial in trials:
        identity = trial["trialJobId"]
        told = _trial(experiment, trial, metric, curve_of.get(identity, []), pace_of.get(identity))
        yield f"  {name_of(trial)}: {told}"
    if state["status"] == "ERROR":
        yield f"  fault: {reason(experiment.folder, state['errors'])}"


def _trial(
    experiment: Experiment, trial: dict[str, Any], metric: Metric, curve: list[float], pace: float | None
) -> str:
    status = str(trial["status"])
    if status == "SUCCEEDED":
        final = result_of(trial)
        return "done" if final is None else f"done, {metric} {metric.show(final)}"
    folder = experiment.trial_folder(trial["trialJobId"])
    if status == "FAILED":
        return f"FAILED: {last_line(folder / 'trial.stderr')}"
    if status in OVER:
        return f"stopped, by hand or for want of memory ({status})"
    if not curve:
        return "started, no epoch is over" if status == "RUNNING" else status.lower()
    epochs = _epochs(folder)
    of_all = f"/{epochs}" if epochs else ""
    left = f", {spell_time(pace * (epochs - len(curve)))} left" if epochs and pace is not None else ""
    return f"epoch {len(curve)}{of_all}, {metric} {metric.show(curve[-1])}{left}"


def _epochs(folder: Path) -> int | None:
    """How many a trial trains, where its settings are on this machine."""
    try:
        return int(read_json(folder / SETTINGS)[EPOCHS])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _metric(settings: dict[str, Any]) -> Metric:
    """What the trials are judged by, as far as the experiment's config says."""
    from nni_blockswap.tasks import metric_of

    arguments = (settings.get("tuner") or {}).get("classArgs") or {}
    return metric_of(str(arguments.get("data")))


def _at_rest(identity: str, entry: dict[str, Any]) -> Iterator[str]:
    """Lines about one that does not run, from its files."""
    folder = experiment_folder(identity)
    yield f"{identity}  {entry.get('experimentName') or 'experiment'}  not running"
    if (folder / CHECKPOINT / ERROR).exists():
        yield f"  fault: {last_line(folder / CHECKPOINT / ERROR)}"
    yield f"  search: {search_text(folder)}"
    ended = results(folder)
    with suppress(OSError, ValueError):
        for student in read(folder / CHECKPOINT / STUDENTS):
            yield f"  student {student.name}: {_student(student, *ended.get(student.id, (None, {})))}"
    yield f"  All of it: {folder}; nnictl resume {identity} goes on, nnictl view {identity} shows it."


def _student(student: Student, folder: Path | None, result: dict[str, Any]) -> str:
    if folder is None:
        return student.state
    metric, value = judged(result)
    return f"done, {metric} {metric.show(value)}, in '{folder}'"

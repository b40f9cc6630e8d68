"""Follow a running experiment on the terminal: the search, each trial's epochs, and faults in one sentence."""

import json
import time
from pathlib import Path
from typing import Any

from nni_blockswap.cli.terminal import Lines, spell_time
from nni_blockswap.errors import StateError
from nni_blockswap.experiment.fetching import fetch
from nni_blockswap.experiment.layout import CHECKPOINT, ERROR, PROGRESS, STUDENTS
from nni_blockswap.experiment.service import Experiment, curves
from nni_blockswap.files import read_json
from nni_blockswap.metric import Metric
from nni_blockswap.results.trial import metric_in

PERIOD = 1.0
"""Seconds between two looks."""
SETTLED = 10
"""Looks at which an experiment has to be over: NNI says so for a moment before the tuner hands a killed trial's student
out again."""
SEARCHED, PREPARING = "done", "preparing"
OVER = ("SUCCEEDED", "FAILED", "USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")


class Follower:
    """Tells what an experiment does until it is over; ``metric``: what its trials are judged by, until one says so."""

    def __init__(self, experiment: Experiment, lines: Lines, metric: Metric) -> None:
        self._experiment, self._lines, self._metric = experiment, lines, metric
        self._seen: dict[str, str] = {}
        self._searched = False

    def follow(self) -> bool:
        """Return when the experiment is over: whether the search ended well, and a trial of each student may have."""
        over = 0
        while True:
            state = self._experiment.get("check-status")
            trials = self._experiment.trials()
            if not self._searched:
                self._show_search()
            for trial in trials:
                self._show_trial(trial)
            self._show_epoch(trials)
            if state["status"] == "ERROR":
                self._lines.say(f"The experiment failed: {reason(self._experiment.folder, state['errors'])}")
                return False
            if state["status"] in ("STOPPING", "STOPPED"):
                raise StateError(
                    f"the experiment was stopped by someone else; nnictl resume {self._experiment.id} goes on."
                )
            idle = trials and all(trial["status"] in OVER for trial in trials)
            done = state["status"] == "DONE" or (state["status"] == "TUNER_NO_MORE_TRIAL" and idle)
            over = over + 1 if done else 0
            good = all(trial["status"] == "SUCCEEDED" for trial in trials)
            if over >= (1 if good else SETTLED):
                return True
            time.sleep(PERIOD)

    def _show_search(self) -> None:
        told = search_text(self._experiment.folder)
        if told == SEARCHED:
            self._searched = True
            self._lines.say("The search is done; the students are trained now, best first.")
        else:
            self._lines.update(f"search: {told}", pause=0 if told == PREPARING else 10)

    def _show_trial(self, trial: dict[str, Any]) -> None:
        identity, status = trial["trialJobId"], trial["status"]
        if self._seen.get(identity) == status:
            return
        self._seen[identity] = status
        if status == "RUNNING":
            self._lines.say(f"{name_of(trial)}: started")
        elif status == "SUCCEEDED":
            final = result_of(trial)
            self._metric = metric_in(self._experiment.trial_folder(identity), self._metric)
            self._lines.say(f"{name_of(trial)}: done{'' if final is None else f', {self._judged(final)}'}")
        elif status == "FAILED":
            faults = fetch(self._experiment.folder)
            said = last_line(self._experiment.trial_folder(identity) / "trial.stderr")
            self._lines.say(f"{name_of(trial)}: FAILED: {faults[0] if faults else said}")
        elif status in OVER:
            self._lines.say(f"{name_of(trial)}: stopped, by hand or for want of memory ({status})")

    def _show_epoch(self, trials: list[dict[str, Any]]) -> None:
        running = [trial for trial in trials if trial["status"] == "RUNNING"]
        found = curves(self._experiment.metrics()) if running else {}
        told = [
            f"{name_of(trial)}: epoch {len(curve)}, {self._judged(curve[-1])}"
            for trial in running
            if (curve := found.get(trial["trialJobId"]))
        ]
        if told:
            self._lines.update("; ".join(told))

    def _judged(self, value: float) -> str:
        return f"{self._metric} {self._metric.show(value)}"


def search_text(folder: Path) -> str:
    """How far the search of the experiment in ``folder`` is."""
    from nni_blockswap.cli.search import candidates
    from nni_blockswap.conversation import Progress

    checkpoint = folder / CHECKPOINT
    if (checkpoint / STUDENTS).exists():
        return SEARCHED
    if (checkpoint / PROGRESS).exists():
        told = read_json(checkpoint / PROGRESS)
        if "what" in told:
            return f"its {told['what']}, {told['done']}/{told['total']} steps, {spell_time(told['seconds_left'])} left"
        return candidates(Progress(**told))
    return PREPARING


def reason(folder: Path, errors: list[str]) -> str:
    """Why an experiment failed: the tuner's own sentence; where it could not say one, the last of its traceback."""
    told, crashed = folder / CHECKPOINT / ERROR, folder / "log" / "nnictl_stderr.log"
    if told.exists():
        return last_line(told)
    found = f"{errors[0] if errors else 'no reason given'} {last_line(crashed)} (see '{crashed.parent}')"
    return f"{found}; nnictl resume {folder.name} tries again, and goes on with what is there"


def last_line(path: Path) -> str:
    """The last line of a file that says something."""
    try:
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1] if lines else f"nothing was said in '{path}'"


def name_of(trial: dict[str, Any]) -> str:
    """Its place, from 1, and NNI's id."""
    return f"trial {int(trial.get('sequenceId', 0)) + 1} ({trial['trialJobId']})"


def result_of(trial: dict[str, Any]) -> float | None:
    """A trial's final result, or None."""
    final = trial.get("finalMetricData")
    if not final:
        return None
    value = json.loads(json.loads(final[-1]["data"]))
    return float(value["default"] if isinstance(value, dict) else value)

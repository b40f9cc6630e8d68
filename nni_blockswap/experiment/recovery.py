"""Trials that a signal, a full disk or a lost machine ended: told from those that failed, and replaced.

A trial that fails by its student's own fault leaves a word in its folder before it ends, see ``training.nni_link``.
What ended without one was ended from outside.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nni_blockswap.experiment.service import Experiment
from nni_blockswap.experiment.students import Student, ended, identity
from nni_blockswap.files import read_json
from nni_blockswap.results.trial import GIVEN, WORD

_OPEN = ("WAITING", "RUNNING", "UNKNOWN", "ADD_RESUMED")
"""States of a trial that has not ended, as NNI has them; the last from a resume on until the trial is started again."""


@dataclass(frozen=True)
class Word:
    """What a trial left: whom it trained (None where it never heard), and whether nobody could train that student."""

    student: str | None
    final: bool


class Words:
    """The words that the trials of an experiment leave, each handed on once."""

    def __init__(self, experiment: Path) -> None:
        self._experiment = experiment
        self._read: set[tuple[Path, int]] = set()

    def new(self) -> list[Word]:
        """Those that came since the last call."""
        return list(self._new())

    def _new(self) -> Iterator[Word]:
        for path in sorted(self._experiment.glob(f"environments/*/trials/*/{WORD}")):
            try:
                version = path, path.stat().st_mtime_ns
                found = read_json(path)
            except (OSError, ValueError):
                continue
            if version not in self._read:
                self._read.add(version)
                yield Word(_student(path.parent), isinstance(found, dict) and found.get("final") is True)


def _student(trial: Path) -> str | None:
    try:
        given = read_json(trial / GIVEN)
    except (OSError, ValueError):
        return None
    return identity(given) if isinstance(given, dict) else None


def held(experiment: Path, trials: Iterable[Mapping[str, Any]]) -> list[str]:
    """The student of each of ``trials`` that has not ended, as the manager lists them.

    A trial that has begun goes on with what is in its folder, even where NNI has recorded it with the parameters of one
    beside it; one that has not is given what is recorded.
    """
    found = []
    for trial in trials:
        if trial["status"] in _OPEN:
            folder = next(experiment.glob(f"environments/*/trials/{trial['trialJobId']}"), experiment)
            found.append(_student(folder) or _recorded(trial))
    return found


def _recorded(trial: Mapping[str, Any]) -> str:
    given = json.loads(trial["hyperParameters"][0])["parameters"]
    return identity(given)


def allow_for(students: Sequence[Student], planned: int, manager: Experiment) -> None:
    """Let NNI start as many trials as it takes to have one for each of the students that have not ended.

        maxTrialNumber = trials so far + students that have neither ended nor an open trial

    Args:
        students: best first.
        planned: maxTrialNumber when the experiment began; what is worse than so many students is not trained.

    Raises:
        StateError: NNI's manager does not answer.
    """
    trials = manager.trials()
    busy = held(manager.folder, trials)
    wanted = len(trials) + sum(not ended(student) and student.id not in busy for student in students[:planned])
    profile: Mapping[str, Any] = manager.get("experiment")
    if wanted > profile["params"].get("maxTrialNumber", wanted):
        changed = {**profile, "params": {**profile["params"], "maxTrialNumber": wanted}}
        manager.put("experiment?update_type=MAX_TRIAL_NUM", changed)

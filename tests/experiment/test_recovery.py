"""How many trials NNI may start: one for each student, and one for each trial that was killed."""

import json
from pathlib import Path

import pytest

from nni_blockswap.experiment.recovery import allow_for, held
from nni_blockswap.experiment.students import Student
from nni_blockswap.files import write_json


def trial(number, state):
    parameters = json.dumps({"parameters": {"architecture_id": str(number)}})
    return {"status": state, "trialJobId": str(number), "hyperParameters": [parameters]}


class Manager:
    """What is asked of NNI's manager."""

    folder = Path("nowhere")

    def __init__(self, *states, limit=3):
        self._trials = [trial(number, state) for number, state in enumerate(states)]
        self._profile = {"id": "abc", "params": {"maxTrialNumber": limit, "trialConcurrency": 1}}
        self.put_to = []

    def trials(self):
        return self._trials

    def get(self, what):
        assert what == "experiment"
        return self._profile

    def put(self, what, content):
        self.put_to.append((what, content["params"]["maxTrialNumber"], content["params"]["trialConcurrency"]))


def students(*states):
    return [Student({"architecture_id": str(number)}, state) for number, state in enumerate(states)]


@pytest.mark.parametrize(
    ("trials", "states", "planned", "limit"),
    [
        (["SUCCEEDED", "FAILED"], ["succeeded", "waiting", "waiting"], 3, 4),
        (["SUCCEEDED", "FAILED", "USER_CANCELED"], ["succeeded", "waiting", "lost"], 3, 5),
        (["SUCCEEDED", "FAILED", "RUNNING"], ["succeeded", "waiting", "running"], 3, 4),
        (["SUCCEEDED", "FAILED"], ["succeeded", "failed", "waiting"], 3, None),  # by its own fault
        (["SUCCEEDED", "RUNNING"], ["succeeded", "running", "waiting"], 3, None),
        (["ADD_RESUMED", "ADD_RESUMED"], ["running", "running", "waiting"], 3, None),
        (["RUNNING", "FAILED", "RUNNING"], ["succeeded", "waiting", "running"], 3, 4),  # the first has reported
        (["FAILED", "FAILED", "SUCCEEDED"], ["succeeded", "waiting", "waiting"], 2, 4),  # the third was never asked for
    ],
)
def test_the_limit_is_what_has_ended_and_what_has_to(trials, states, planned, limit):
    manager = Manager(*trials)
    allow_for(students(*states), planned, manager)
    assert manager.put_to == ([] if limit is None else [("experiment?update_type=MAX_TRIAL_NUM", limit, 1)])


def test_an_open_trial_has_the_student_in_its_folder_or_the_one_that_nni_recorded(tmp_path):
    write_json(tmp_path / "environments/worker/trials/1/parameters.json", {"architecture_id": "0"})
    trials = [trial(0, "SUCCEEDED"), trial(1, "ADD_RESUMED"), trial(2, "WAITING")]
    assert held(tmp_path, trials) == ["0", "2"]


def test_without_a_limit_there_is_none_to_raise():
    manager = Manager("FAILED", "FAILED")
    del manager.get("experiment")["params"]["maxTrialNumber"]
    allow_for(students("waiting", "waiting"), 2, manager)
    assert manager.put_to == []

"""How many trials NNI may start: one for each student, and one for each trial that was killed."""

import pytest

from nni_blockswap.experiment.recovery import allow_for
from nni_blockswap.experiment.students import Student


class Manager:
    """What is asked of NNI's manager."""

    def __init__(self, *states, limit=3):
        self._trials = [{"status": state, "trialJobId": str(number)} for number, state in enumerate(states)]
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
        (["FAILED", "FAILED", "SUCCEEDED"], ["succeeded", "waiting", "waiting"], 2, 4),  # the third was never asked for
    ],
)
def test_the_limit_is_what_has_ended_and_what_has_to(trials, states, planned, limit):
    manager = Manager(*trials)
    allow_for(students(*states), planned, manager)
    assert manager.put_to == ([] if limit is None else [("experiment?update_type=MAX_TRIAL_NUM", limit, 1)])


def test_a_trial_that_has_reported_counts_as_ended():
    manager = Manager("RUNNING", "FAILED", "RUNNING")
    manager.trials()[0]["finalMetricData"] = [{}]
    allow_for(students("succeeded", "waiting", "running"), 3, manager)
    assert manager.put_to[0][1] == 4


def test_without_a_limit_there_is_none_to_raise():
    manager = Manager("FAILED", "FAILED")
    del manager.get("experiment")["params"]["maxTrialNumber"]
    allow_for(students("waiting", "waiting"), 2, manager)
    assert manager.put_to == []

"""What a person is told of an experiment while it runs."""

import json

import pytest

from nni_blockswap.cli import following
from nni_blockswap.cli.terminal import Lines
from nni_blockswap.errors import StateError
from nni_blockswap.files import write_json
from nni_blockswap.metric import ACCURACY, Metric
from tests.cli.metrics import periodical


class FakeExperiment:
    """Answers as NNI's manager does, one scene after the other."""

    def __init__(self, folder, scenes):
        self.id, self.folder, self._scenes = "abc", folder, iter(scenes)

    def get(self, what):
        assert what == "check-status"
        self._status, self._trials, self._curves = next(self._scenes)
        return {"status": self._status, "errors": ["Dispatcher stream error, tuner may have crashed."]}

    def trials(self):
        return self._trials

    def metrics(self):
        return periodical(self._curves)

    def trial_folder(self, trial):
        return self.folder / trial


def trial(number, status, accuracy=None):
    final = [{"data": json.dumps(json.dumps({"default": accuracy}))}] if accuracy else []
    return {"trialJobId": f"t{number}", "sequenceId": number, "status": status, "finalMetricData": final}


def followed(folder, *scenes, monkeypatch, capsys):
    monkeypatch.setattr(following, "PERIOD", 0)
    good = following.Follower(FakeExperiment(folder, scenes), Lines(), ACCURACY).follow()
    return good, capsys.readouterr().out.splitlines()


def test_a_good_experiment_is_told_from_search_to_accuracy(tmp_path, monkeypatch, capsys):
    write_json(
        tmp_path / "checkpoint" / "progress.json", {"done": 30, "total": 300, "seconds": 3.0, "fresh": 30, "best": 0.5}
    )
    good, lines = followed(
        tmp_path,
        ("RUNNING", [], {}),
        ("RUNNING", [trial(0, "RUNNING")], {"t0": [0.5, 0.75]}),
        ("DONE", [trial(0, "SUCCEEDED", 0.9)], {}),
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert good
    assert lines[0] == "search: 30/300 candidates, 10.0/s, 0:27 left, best 0.5"
    assert lines[-3:] == [
        "trial 1 (t0): started",
        "trial 1 (t0): epoch 2, accuracy 75.00%",
        "trial 1 (t0): done, accuracy 90.00%",
    ]


def test_a_trial_says_itself_what_it_is_judged_by(tmp_path, monkeypatch, capsys):
    error = Metric("mean error", higher_is_better=False, is_share=False)
    write_json(tmp_path / "t0" / "result.json", {"mean_error": 12.5, "metric": error.recorded(), "params": 1})
    _, lines = followed(
        tmp_path,
        ("RUNNING", [trial(0, "SUCCEEDED", 12.5), trial(1, "RUNNING")], {"t1": [9.5]}),
        ("DONE", [trial(0, "SUCCEEDED", 12.5), trial(1, "SUCCEEDED", 9.5)], {}),
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert [line for line in lines if "error" in line] == [
        "trial 1 (t0): done, mean error 12.5",
        "trial 2 (t1): epoch 1, mean error 9.5",
        "trial 2 (t1): done, mean error 9.5",
    ]


def test_a_failed_trial_is_told_with_its_last_word(tmp_path, monkeypatch, capsys):
    (tmp_path / "t0").mkdir()
    (tmp_path / "t0" / "trial.stderr").write_text("noise\ntrial: there is no checkpoint 'x.pt'.\n\n")
    over = ("DONE", [trial(0, "FAILED"), trial(1, "USER_CANCELED")], {})
    good, lines = followed(tmp_path, *[over] * following.SETTLED, monkeypatch=monkeypatch, capsys=capsys)
    assert good  # what became of the students is for their table to say
    assert "trial 1 (t0): FAILED: trial: there is no checkpoint 'x.pt'." in lines
    assert "trial 2 (t1): stopped, by hand or for want of memory (USER_CANCELED)" in lines


def test_an_experiment_that_trains_a_killed_trials_student_again_is_not_over(tmp_path, monkeypatch, capsys):
    killed = trial(0, "FAILED")
    good, lines = followed(
        tmp_path,
        ("DONE", [killed], {}),
        ("RUNNING", [killed, trial(1, "RUNNING")], {}),
        *[("DONE", [killed, trial(1, "SUCCEEDED", 0.9)], {})] * following.SETTLED,
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert good
    assert "trial 2 (t1): done, accuracy 90.00%" in lines


def test_a_failed_search_is_told_in_the_tuners_own_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "error.txt").write_text("no architecture fits.\n")
    good, lines = followed(tmp_path, ("ERROR", [], {}), monkeypatch=monkeypatch, capsys=capsys)
    assert not good
    assert lines[-1] == "The experiment failed: no architecture fits."


def test_a_tuner_that_could_not_be_made_is_told_from_its_traceback(tmp_path, monkeypatch, capsys):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "nnictl_stderr.log").write_text("Traceback ...\nModuleNotFoundError: No module named 'x'\n")
    good, lines = followed(tmp_path, ("ERROR", [], {}), monkeypatch=monkeypatch, capsys=capsys)
    assert not good
    assert "No module named 'x'" in lines[-1]
    assert f"nnictl resume {tmp_path.name} tries again" in lines[-1]


def test_fewer_students_than_trials_is_an_end_too(tmp_path, monkeypatch, capsys):
    good, _ = followed(
        tmp_path,
        ("TUNER_NO_MORE_TRIAL", [trial(0, "RUNNING")], {}),
        ("TUNER_NO_MORE_TRIAL", [trial(0, "SUCCEEDED", 0.9)], {}),
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert good


def test_stopped_by_another_hand(tmp_path, monkeypatch, capsys):
    with pytest.raises(StateError, match="nnictl resume abc"):
        followed(tmp_path, ("STOPPED", [], {}), monkeypatch=monkeypatch, capsys=capsys)

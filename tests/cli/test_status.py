"""blockswap status: what is told of experiments that run, that failed and that are at rest."""

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from nni_blockswap.architecture import Architecture
from nni_blockswap.cli import main, status
from nni_blockswap.errors import StateError
from nni_blockswap.experiment.students import Students
from nni_blockswap.files import write_json
from nni_blockswap.metric import Metric
from tests.cli.metrics import periodical
from tests.conftest import SMALL, WRN


class FakeExperiment:
    """Answers as NNI's manager does."""

    def __init__(self, folder: Path, state: str = "RUNNING", trials: list[dict[str, Any]] | None = None) -> None:
        self.id, self.port, self.folder = "abc", 8080, folder
        self._state, self._trials = state, trials or []

    def get(self, what: str) -> Any:
        classargs = {"tuner": {"classArgs": {"data": "digits"}}}
        return {
            "check-status": {"status": self._state, "errors": ["Dispatcher stream error."]},
            "experiment": {"params": {"experimentName": "BlockSwap on digits", **classargs}},
        }[what]

    def trials(self) -> list[dict[str, Any]]:
        return self._trials

    def metrics(self) -> list[dict[str, Any]]:
        return periodical({"t1": [0.5, 0.75]}, pace=20.0)

    def trial_folder(self, trial: str) -> Path:
        return self.folder / trial


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The experiment's folder, noted as NNI notes it."""
    (tmp_path / "nni-experiments").mkdir()
    entry = {"id": "abc", "port": 8080, "status": "RUNNING", "logDir": str(tmp_path), "experimentName": "mine"}
    write_json(tmp_path / "nni-experiments" / ".experiment", {"abc": entry})
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "abc" / "checkpoint").mkdir(parents=True)
    return tmp_path / "abc"


def shown(monkeypatch: pytest.MonkeyPatch, experiment: FakeExperiment) -> list[str]:
    monkeypatch.setattr(status, "Experiment", lambda *_: experiment)
    lines, _ = status.look(None)
    return lines


def test_a_search_is_told_with_rate_time_and_best(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(
        known / "checkpoint" / "progress.json", {"done": 30, "total": 300, "seconds": 3.0, "fresh": 30, "best": 0.5}
    )
    assert shown(monkeypatch, FakeExperiment(known)) == [
        "abc  BlockSwap on digits  RUNNING  http://localhost:8080",
        "  search: 30/300 candidates, 10.0/s, 0:27 left, best 0.5",
    ]


def test_trials_are_told_with_epoch_accuracy_and_time_left(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = [{"data": json.dumps(json.dumps({"default": 0.9}))}]
    trials = [
        {"trialJobId": "t0", "sequenceId": 0, "status": "SUCCEEDED", "finalMetricData": final},
        {"trialJobId": "t1", "sequenceId": 1, "status": "RUNNING"},
        {"trialJobId": "t2", "sequenceId": 2, "status": "FAILED"},
        {"trialJobId": "t3", "sequenceId": 3, "status": "WAITING"},
    ]
    (known / "checkpoint" / "students.json").write_text("[]")
    write_json(known / "t1" / "settings.json", {"epochs": 12})
    (known / "t2").mkdir()
    (known / "t2" / "trial.stderr").write_text("noise\ntrial: there is no checkpoint 'x.pt'.\n")
    assert shown(monkeypatch, FakeExperiment(known, trials=trials))[1:] == [
        "  search: done",
        "  trial 1 (t0): done, accuracy 90.00%",
        "  trial 2 (t1): epoch 2/12, accuracy 75.00%, 3:20 left",  # ten epochs of 20 s
        "  trial 3 (t2): FAILED: trial: there is no checkpoint 'x.pt'.",
        "  trial 4 (t3): waiting",
    ]


def test_trials_are_told_by_what_one_says_it_is_judged_by(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = [{"data": json.dumps(json.dumps({"default": 12.5}))}]
    trials = [
        {"trialJobId": "t0", "sequenceId": 0, "status": "SUCCEEDED", "finalMetricData": final},
        {"trialJobId": "t1", "sequenceId": 1, "status": "RUNNING"},
    ]
    error = Metric("mean error", higher_is_better=False, is_share=False)
    write_json(known / "t0" / "result.json", {"mean_error": 12.5, "metric": error.recorded(), "params": 1})
    assert shown(monkeypatch, FakeExperiment(known, trials=trials))[2:] == [
        "  trial 1 (t0): done, mean error 12.5",
        "  trial 2 (t1): epoch 2, mean error 0.75",
    ]


def test_a_fault_of_the_search_is_told_in_its_own_sentence(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (known / "checkpoint" / "error.txt").write_text("no architecture fits.\n")
    monkeypatch.setattr(status, "Experiment", lambda *_: FakeExperiment(known, "ERROR"))
    lines, over = status.look("abc")
    assert lines[-1] == "  fault: no architecture fits."
    assert over


@pytest.mark.parametrize(("asked", "ports"), [("abc", [8080]), (None, [8080, 8081])])
def test_only_what_is_asked_for_is_asked(
    asked: str | None, ports: list[int], known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = known.parent / "nni-experiments" / ".experiment"
    entry = json.loads(path.read_text())["abc"]
    write_json(path, {"abc": entry, "other": {**entry, "id": "other", "port": 8081}})
    called: list[int] = []

    def manager(port: int, patience: float) -> FakeExperiment:
        called.append(port)
        return FakeExperiment(known)

    monkeypatch.setattr(status, "Experiment", manager)
    lines, _ = status.look(asked)
    assert called == ports
    assert [line for line in lines if not line.startswith(" ")] == [
        "abc  BlockSwap on digits  RUNNING  http://localhost:8080"
    ]


def test_what_is_at_rest_is_told_from_its_files(
    known: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: object) -> None:
        raise StateError("NNI's manager does not answer.")

    monkeypatch.setattr(status, "Experiment", gone)
    one, two = (Architecture.from_choices(WRN, choices, SMALL) for choices in (["S"] * 3, ["G(4)"] * 3))
    Students.select(known / "checkpoint" / "students.json", [one, two])
    result = {"accuracy": 0.875, "params": one.params, "architecture_id": one.id}
    (known / "trial").mkdir()
    write_json(known / "trial" / "result.json", result)
    assert main(["status", "abc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "abc  mine  not running"
    assert f"  student 1: done, accuracy 87.50%, in '{known / 'trial'}'" in lines
    assert "  student 2: waiting" in lines
    assert main(["status"]) == 0
    assert "No experiment is running" in capsys.readouterr().out


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.2\r\n", None])
def test_a_port_that_another_program_has_taken_is_no_experiment(
    known: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: bytes | None
) -> None:
    monkeypatch.setattr(status, "PATIENCE", 0.2)
    with socket.create_server(("localhost", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                if said is None:
                    connection.recv(1)  # until the other side gives up
                else:
                    connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        write_json(
            known.parent / "nni-experiments" / ".experiment",
            {"abc": {"id": "abc", "port": server.getsockname()[1], "status": "RUNNING", "logDir": str(known.parent)}},
        )
        assert main(["status"]) == 0
        thread.join()
    assert "No experiment is running" in capsys.readouterr().out


def test_an_experiment_that_is_none_is_named(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "xyz"]) == 2
    assert "there is no experiment 'xyz'" in capsys.readouterr().err


def test_a_folder_is_no_id(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(known)]) == 2
    assert f"there is no experiment '{known}' of that id; NNI knows abc" in capsys.readouterr().err


def test_what_is_only_viewed_changes_no_more(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "Experiment", lambda *_: FakeExperiment(known, "VIEWED"))
    lines, over = status.look("abc")
    assert "VIEWED" in lines[0]
    assert over


def test_on_a_terminal_it_is_drawn_over_until_it_is_over(
    known: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = iter([(["one", "two"], False), (["three"], True)])
    monkeypatch.setattr(status, "look", lambda identity: next(scenes))
    monkeypatch.setattr(status, "PERIOD", 0)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["status", "abc"]) == 0
    said = capsys.readouterr().out
    assert said.index("one") < said.index("two") < said.index("\033[1A\033[2K") < said.index("three")  # up, and cleared

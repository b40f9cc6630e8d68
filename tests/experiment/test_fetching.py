"""What trials wrote on other machines comes here, whole, and nothing of this machine's is touched."""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import psutil
import pytest

from nni_blockswap.experiment.fetching import Fetcher, fetch
from nni_blockswap.experiment.service import results

Machines = list[dict[str, Any]]
CURVES = "events.out.tfevents.1.worker"


def experiment(folder: Path, machines: Machines, platform: str = "remote") -> Path:
    """A folder of an experiment as NNI leaves it: its config stands in a database, the newest revision last."""
    (folder / "db").mkdir(parents=True)
    listed = [{name: value for name, value in one.items() if name != "home"} for one in machines]
    with sqlite3.connect(folder / "db" / "nni.sqlite") as database:
        database.execute("create table ExperimentProfile (params text, revision integer)")
        for revision, service in enumerate([{}, {"platform": platform, "machineList": listed}]):
            row = json.dumps({"trainingService": service}), revision
            database.execute("insert into ExperimentProfile values (?, ?)", row)
    return folder


def trial(machine: dict[str, Any], experiment: Path, name: str, number: int = 1) -> Path:
    """A trial's folder on a machine, with all that one leaves."""
    folder = machine["home"] / "nni-experiments" / experiment.name / f"environments/remote-worker{number}/trials/{name}"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"architecture_id": name, "params": 9, "accuracy": 0.5}))
    (folder / "weights.pt").write_bytes(b"w" * 100_000)
    (folder / "last.ckpt").write_bytes(b"c")
    (folder / "run.lock").touch()
    (folder / "tensorboard" / CURVES).write_bytes(b"one")
    return folder


def test_results_and_curves_come_where_the_local_service_would_put_them(two_machines: Machines, tmp_path: Path) -> None:
    here = experiment(tmp_path / "abc1", two_machines)
    trial(two_machines[0], here, "t1")
    away = trial(two_machines[1], here, "t2", 2)
    assert fetch(here) == []
    assert set(results(here)) == {"t1", "t2"}
    ours = here / "environments" / "remote-worker2" / "trials" / "t2"
    assert (ours / "weights.pt").read_bytes() == (away / "weights.pt").read_bytes()
    assert sorted(path.name for path in ours.iterdir()) == ["result.json", "tensorboard", "weights.pt"]
    button = here / "trials" / "t2" / "output" / "tensorboard"
    assert (button / CURVES).read_bytes() == b"one"


def test_curves_grow_in_place_and_what_is_here_is_not_copied_again(two_machines: Machines, tmp_path: Path) -> None:
    here = experiment(tmp_path / "abc2", two_machines)
    away = trial(two_machines[0], here, "t1")
    fetch(here)
    ours = here / "environments" / "remote-worker1" / "trials" / "t1"
    weights = (ours / "weights.pt").stat()
    with (ours / "tensorboard" / CURVES).open("rb") as watched:  # as TensorBoard does
        assert watched.read() == b"one"
        with (away / "tensorboard" / CURVES).open("ab") as grown:
            grown.write(b" two")
        fetch(here)
        assert watched.read() == b" two"
    assert (ours / "weights.pt").stat() == weights
    (away / "weights.pt").write_bytes(b"new")
    os.utime(away / "weights.pt", (1, 1))
    fetch(here)
    assert (ours / "weights.pt").read_bytes() == b"new"


def test_a_word_of_failure_goes_where_the_trial_goes_on(two_machines: Machines, tmp_path: Path) -> None:
    here = experiment(tmp_path / "abc6", two_machines)
    away = trial(two_machines[0], here, "t1")
    (away / "failure.json").write_text("{}")
    fetch(here)
    ours = here / "environments" / "remote-worker1" / "trials" / "t1" / "failure.json"
    assert ours.exists()
    (away / "failure.json").unlink()
    fetch(here)
    assert not ours.exists()


def test_a_home_that_is_shared_is_left_alone(two_machines: Machines, tmp_path: Path) -> None:
    here = experiment(two_machines[0]["home"] / "nni-experiments" / "abc3", two_machines[:1])
    away = trial(two_machines[0], here, "t1")
    before = {path: path.stat() for path in away.rglob("*")}
    assert fetch(here) == []
    assert {path: path.stat() for path in away.rglob("*")} == before
    assert sorted(path.name for path in here.iterdir()) == [".fetching", "db", "environments"]


def test_a_machine_that_is_away_is_named_and_the_others_are_fetched_from(
    two_machines: Machines, tmp_path: Path
) -> None:
    away = {**two_machines[1], "port": 1}
    here = experiment(tmp_path / "abc4", [away, two_machines[0]])
    trial(two_machines[0], here, "t1")
    (fault,) = fetch(here)
    assert f"@127.0.0.1:1 stays there for now: {away['user']}@127.0.0.1:1 cannot be reached by ssh" in fault
    assert set(results(here)) == {"t1"}


def test_a_machine_that_falls_silent_is_not_waited_for(
    two_machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = experiment(tmp_path / "abc7", two_machines[:1])
    trial(two_machines[0], here, "t1")
    settings = f"{two_machines[0]['home']}.conf"
    running = psutil.process_iter(["cmdline"])  # which has none of a child of another test that nobody waited for
    sshd = next(one for one in running if settings in (one.info["cmdline"] or ()))
    frozen: list[psutil.Process] = []

    def freeze(*_: object) -> bool:
        frozen.extend(sshd.children(recursive=True))
        for process in frozen:
            process.suspend()
        return False

    monkeypatch.setattr("nni_blockswap.experiment.fetching._is_here", freeze)
    monkeypatch.setattr("nni_blockswap.experiment.fetching.SILENCE", 0.5)
    try:
        (fault,) = fetch(here)
    finally:
        for process in frozen:
            process.resume()
    assert fault.endswith("stays there for now: it said nothing for 0.5 seconds.")


@pytest.mark.parametrize("platform", ["local", "kubeflow"])
def test_trials_of_other_platforms_are_not_fetched(platform: str, tmp_path: Path) -> None:
    nowhere = [{"host": "127.0.0.1", "port": 1, "user": "nobody"}]
    assert fetch(experiment(tmp_path / "a", nowhere, platform)) == []
    assert fetch(tmp_path) == []  # no experiment at all


def test_stopping_fetches_what_came_last(two_machines: Machines, tmp_path: Path) -> None:
    here = experiment(tmp_path / "abc5", two_machines)
    said: list[str] = []
    fetcher = Fetcher(here, said.append)
    fetcher.start()
    trial(two_machines[0], here, "t1")
    fetcher.stop()
    assert set(results(here)) == {"t1"}
    assert said == []

"""Three students on two machines, by NNI's remote training service: stopped, resumed, done, and all of it here."""

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from nni_blockswap.cli import main
from nni_blockswap.experiment.service import Experiment, curves, nnictl, results
from nni_blockswap.experiment.students import read
from nni_blockswap.files import read_json
from nni_blockswap.training import teachers
from tests.cli.test_run import port
from tests.conftest import WRN
from trial import teacher

ROOT = Path(__file__).parents[2]
SPACE_ARGS = {"depth": 10, "width": 1, "num_classes": 10, "in_channels": 1, "image_size": 16}
RECIPE = "--data digits --batch-size 64 --epochs"
Machines = list[dict[str, Any]]


@pytest.fixture
def config(two_machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """experiments/remote.yml, smaller, on machines that have no copy of the code and no teacher."""
    code = tmp_path / "code"
    for name in ("nni_blockswap", "search_spaces", "trial"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(code)
    named = ["--space", WRN, *(f"--space-arg={name}={value}" for name, value in SPACE_ARGS.items())]
    teachers.run(teacher.parser().parse_args([*RECIPE.split(), "1", *named, "--out", "teachers/digits"]))
    content = yaml.safe_load((ROOT / "experiments" / "remote.yml").read_text())
    content["trainingService"]["machineList"] = [
        {name: value for name, value in one.items() if name != "home"} for one in two_machines
    ]
    content["tuner"]["codeDirectory"] = str(code)
    changes = {"space_args": SPACE_ARGS, "samples": 4, "batch_size": 8, "students": 3, "processes": 1}
    content["tuner"]["classArgs"] |= {**changes, "tolerance": 0.3}
    # The first trial asks for its parameters last, so that NNI gives it those of the second.
    content["trialCommand"] = f"test $NNI_TRIAL_SEQ_ID != 0 || sleep 5; exec {content['trialCommand']} --epochs 5"
    content |= {"searchSpace": {}, "nniManagerIp": "127.0.0.1", "maxTrialNumber": 3, "trialCodeDirectory": str(code)}
    del content["searchSpaceFile"]
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def until(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.5)


def failed(experiment: Experiment) -> bool:
    return bool(experiment.get("check-status")["status"] == "ERROR")


def met(experiment: Experiment, starts: int) -> bool:
    """Whether the manager has met the tuner that was started last; one that it has not met in ten seconds is lost."""
    log = experiment.folder / "log" / "dispatcher.log"
    return failed(experiment) or (log.exists() and log.read_text().count("Initial search space") >= starts)


def started(*arguments: str) -> Experiment:
    """What nnictl has started; a busy machine may be too slow for it."""
    for _ in range(8):
        number = port()
        said, _ = (process := nnictl(*arguments, "--port", number)).communicate()
        if process.returncode == 0:
            experiment = Experiment(int(number))
            until(partial(met, experiment, 1 + arguments.count("resume")))
            if not failed(experiment):
                return experiment
            nnictl("stop", experiment.id).communicate()
    raise AssertionError(said)


@pytest.mark.slow  # starts two sshds and NNI's manager twice, searches, trains a teacher and three students
def test_three_students_on_two_machines_stopped_resumed_and_done(
    config: Path, two_machines: Machines, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config)]) == 0
    running = started("create", "--config", str(config))
    try:
        until(lambda: len(curves(running.metrics())) >= 2)
        nnictl("stop", running.id).communicate()
        running = started("resume", running.id)
        until(lambda: running.get("check-status")["status"] in ("DONE", "ERROR"))
        state, trials = running.get("check-status"), running.trials()
    finally:
        nnictl("stop", running.id).communicate()
    assert (state["status"], [trial["status"] for trial in trials]) == ("DONE", ["SUCCEEDED"] * 3), trials
    assert {trial["envId"] for trial in trials} == {"remote-worker1", "remote-worker2"}

    ended = results(running.folder)
    students = read(running.folder / "checkpoint" / "students.json")
    assert {student.id: student.state for student in students} == dict.fromkeys(ended, "succeeded")
    assert len(ended) == 3
    taught = {result["teacher_accuracy"] for _, result in ended.values()}
    assert len(taught) == 1  # handed to all
    for folder, result in ended.values():
        assert folder.is_relative_to(running.folder)
        assert "training the teacher" not in (folder / "trial.stdout").read_text()
        assert read_json(folder / "settings.json")["architecture_id"] == result["architecture_id"]
        assert any((running.folder / "trials" / folder.name / "output" / "tensorboard").glob("events*"))
    before = capfd.readouterr()
    assert main(["export", running.id, "--out", str(tmp_path / "best")]) == 0, before
    best = json.loads((tmp_path / "best" / "result.json").read_text())
    assert best["accuracy"] == max(result["accuracy"] for _, result in ended.values())
    assert main(["report", running.id, "--out", str(tmp_path / "report"), "--latency-batch", "0"]) == 0

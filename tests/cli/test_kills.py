"""Experiments that are killed at any moment: resumed, they are DONE, and nothing was lost or done twice."""

import json
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from nni_blockswap.cli import run
from nni_blockswap.errors import StateError
from nni_blockswap.experiment import service
from nni_blockswap.files import read_json
from tests.cli.test_run import left_over, patiently
from tests.conftest import SMALL, WRN

ROOT = Path(__file__).parents[2]
SAMPLES, STUDENTS, EPOCHS = 40, 2, 4
WHOM = ("dispatcher", "manager", "trial", "all")
BUSY = 5
"""Times that a busy machine may be too slow for NNI, beside ``run.ATTEMPTS`` each."""
PATIENCE = 400
"""Seconds until something has gone wrong."""


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """The teacher is trained once."""
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture
def experiment(tmp_path, teachers):
    """(config of an experiment that takes seconds, an environment of its own)."""
    trial = f"python -m trial.distill --data digits --data-option image_size=8 --epochs {EPOCHS} --teacher-epochs 1"
    arguments = {"space": WRN, "space_args": SMALL, "data": "digits", "data_options": {"image_size": 8},
                 "budget": "60%", "at_most": True, "samples": SAMPLES, "batch_size": 4,
                 "students": STUDENTS}  # fmt: skip
    content = {
        "searchSpace": {},
        "tuner": {
            "className": "nni_blockswap.tuner.BlockSwapTuner",
            "codeDirectory": str(ROOT),
            "classArgs": arguments,
        },
        "trialCommand": f"{trial} --beta 10 --teacher-dir {shlex.quote(str(teachers))}",
        "trialCodeDirectory": str(ROOT),
        "maxTrialNumber": STUDENTS,
        "trialConcurrency": 1,
        "experimentWorkingDirectory": str(tmp_path / "experiments"),
        "trainingService": {"platform": "local"},
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(content))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return tmp_path / "config.yml", {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": path}


def scores(folder):
    path = folder / "checkpoint" / "search" / "scores.jsonl"
    return path.read_bytes() if path.exists() else b""


def epochs(folder):
    """Epochs that were checkpointed in the trials so far, those of finished ones included."""
    done = 0
    for path in folder.glob("environments/*/trials/*/trial.log"):
        done += path.read_text(errors="replace").count(f"/{EPOCHS}: ")
    return done


def finished(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("environments/*/trials/*/result.json")}


def reached(folder, moment):
    phase, count = moment
    return (scores(folder).count(b"\n") if phase == "search" else epochs(folder)) >= count


def processes(manager, whom):
    """The processes of a running experiment that ``whom`` means."""
    family = [manager, *manager.children(recursive=True)]
    if whom == "all":
        return family
    if whom == "manager":
        return [manager]
    sign = "--exp_params" if whom == "dispatcher" else "trial.distill"
    return [one for one in family[1:] if sign in " ".join(one.cmdline()) and one.name().startswith("python")]


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def status_of(running):
    """NNI's word, or that its manager has gone."""
    try:
        return running.get("check-status")["status"]
    except StateError:
        return "GONE"


def over(running):
    """Its status where it is over: NNI says DONE for a moment before a student is handed out again."""
    found = [status_of(running)]
    while found[-1] in ("DONE", "ERROR", "GONE") and len(found) < 4:
        time.sleep(1)
        found.append(status_of(running))
    return found[-1] if len(found) == 4 and len(set(found)) == 1 else None


def settled(running, environment):
    """Wait until it is over, and stop it."""
    status = wait_for(lambda: over(running))
    subprocess.run(["nnictl", "stop", running.id], env=environment, capture_output=True, timeout=PATIENCE, check=False)
    wait_for(lambda: status_of(running) == "GONE")
    return status


def begun(config, environment, moment):
    """(experiment, its manager's process) at a moment; NNI gives a tuner ten seconds, too few on a busy machine."""
    for _ in range(BUSY):
        where, created = patiently(["create", "--config", str(config)], environment, lambda done: done.returncode == 0)
        if created.returncode != 0:
            continue
        running, manager = service.Experiment(int(where)), run._manager(int(where))
        wait_for(lambda: reached(running.folder, moment) or status_of(running) == "ERROR")  # noqa: B023
        if status_of(running) != "ERROR":
            return running, manager
        settled(running, environment)
    raise AssertionError("NNI could not start a tuner")


def resumed(identity, environment):
    for _ in range(BUSY):
        where, done = patiently(["resume", identity], environment, lambda done: done.returncode == 0)
        if done.returncode == 0:
            return service.Experiment(int(where))
    raise AssertionError(done.stdout)


@pytest.mark.slow  # each starts NNI's manager twice, searches, trains two students
@pytest.mark.parametrize("number", range(20))
def test_a_killed_experiment_is_resumed_to_done_and_nothing_is_lost_or_done_twice(number, experiment, tmp_path):
    draw = random.Random(number)
    whom = WHOM[number % len(WHOM)]
    training = "training", draw.randrange(1, STUDENTS * EPOCHS)
    moment = training if whom == "trial" or draw.random() < 0.5 else ("search", draw.randrange(1, SAMPLES))
    config, environment = experiment
    running, manager = begun(config, environment, moment)
    for process in wait_for(lambda: processes(manager, whom)):
        process.kill()
    before, results = scores(running.folder), finished(running.folder)
    settled(running, environment)
    for _ in range(3):
        running = resumed(running.id, environment)
        status = settled(running, environment)
        if status == "DONE":
            break
    assert (whom, moment, status) == (whom, moment, "DONE")
    after = scores(running.folder)
    assert after.startswith(before[: before.rfind(b"\n") + 1])
    keys = [(line["init"], line["choices"]) for line in map(json.loads, after.splitlines())]
    assert len(keys) == len(set(keys)) == SAMPLES
    students = read_json(running.folder / "checkpoint" / "students.json")
    assert [student["state"] for student in students] == ["succeeded"] * STUDENTS
    now = finished(running.folder)
    assert results.items() <= now.items()
    trained = [json.loads(result)["architecture_id"] for result in now.values()]
    assert sorted(trained) == sorted(student["parameters"]["architecture_id"] for student in students)
    assert left_over(tmp_path / "experiments") == []

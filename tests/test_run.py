"""blockswap run and export: what a person is told, and that nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from nni_blockswap import Architecture
from nni_blockswap.cli import experiment, following, main, run
from nni_blockswap.cli.config import Config
from nni_blockswap.cli.table import print_students
from nni_blockswap.dispatcher import restore_gpus
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.files import read_json, write_json
from nni_blockswap.students import Students
from tests.conftest import SMALL, WRN

ROOT = Path(__file__).parents[1]


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

    def curves(self):
        return self._curves

    def trial_folder(self, trial):
        return self.folder / trial


def trial(number, status, accuracy=None):
    final = [{"data": json.dumps(json.dumps({"default": accuracy}))}] if accuracy else []
    return {"trialJobId": f"t{number}", "sequenceId": number, "status": status, "finalMetricData": final}


def followed(folder, *scenes, monkeypatch, capsys):
    monkeypatch.setattr(following, "PERIOD", 0)
    good = following.Follower(FakeExperiment(folder, scenes), following.Line(), "accuracy").follow()
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
    assert lines[0] == "search: 30/300 candidates, 10.0/s, 0:27 left, best 0.5 "
    assert lines[-3:] == [
        "trial 1 (t0): started",
        "trial 1 (t0): epoch 2, accuracy 75.00%",
        "trial 1 (t0): done, accuracy 90.00%",
    ]


def test_a_failed_trial_is_told_with_its_last_word(tmp_path, monkeypatch, capsys):
    (tmp_path / "t0").mkdir()
    (tmp_path / "t0" / "trial.stderr").write_text("noise\ntrial: there is no checkpoint 'x.pt'.\n\n")
    good, lines = followed(
        tmp_path, ("DONE", [trial(0, "FAILED"), trial(1, "USER_CANCELED")], {}), monkeypatch=monkeypatch, capsys=capsys
    )
    assert not good
    assert "trial 1 (t0): FAILED: trial: there is no checkpoint 'x.pt'." in lines
    assert "trial 2 (t1): stopped, by hand or for want of memory (USER_CANCELED)" in lines


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


def test_a_taken_port_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run._free_port(port) > port


def finished(folder, accuracies):
    """An experiment's folder with trained students of these accuracies; their architectures."""
    students = [Architecture.from_choices(WRN, [name] * 3, SMALL).scored(0.5, {}) for name in ("S", "B(2)", "G(2)")][
        : len(accuracies)
    ]
    table = Students.select(folder / "checkpoint" / "students.json", students)
    for number, (student, accuracy) in enumerate(zip(students, accuracies, strict=True)):
        out = folder / "environments" / "local-env" / "trials" / f"t{number}"
        result = {
            "accuracy": accuracy,
            "teacher_accuracy": 0.99,
            "architecture_id": student.id,
            "params": student.params,
        }
        write_json(out / "result.json", result)
        student.save(out / "architecture.json")
        torch.save(student.build().state_dict(), out / "weights.pt")
        table.succeeded(student.id, accuracy)
    return students


def test_the_table_names_costs_accuracies_teacher_and_folders(tmp_path, capsys):
    students = finished(tmp_path, [0.9, 0.8])
    config = Config(ROOT / "config.yml")
    assert print_students(tmp_path, config)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    trials = tmp_path / "environments" / "local-env" / "trials"
    assert lines[1] == ["1", f"{students[0].params:,}", f"{students[0].macs:,}", "0.5", "90.00%", str(trials / "t0")]
    assert lines[2] == ["2", f"{students[1].params:,}", f"{students[1].macs:,}", "0.5", "80.00%", str(trials / "t1")]
    assert lines[3] == ["teacher", f"{students[0].params:,}", f"{students[0].macs:,}", "99.00%"]


def test_a_student_that_failed_fails_the_run(tmp_path, capsys):
    students = finished(tmp_path, [0.9, 0.8])
    (tmp_path / "environments" / "local-env" / "trials" / "t1" / "result.json").unlink()
    table = Students.select(tmp_path / "checkpoint" / "students.json", students)
    table.failed(students[1].id)
    assert not print_students(tmp_path, Config(ROOT / "config.yml"))
    assert "failed" in capsys.readouterr().out


def test_export_takes_the_best_trial_and_its_weights_fit(tmp_path, capsys):
    best = finished(tmp_path / "experiment", [0.8, 0.9, 0.7])[1]
    assert main(["export", str(tmp_path / "experiment"), "--out", str(tmp_path / "out")]) == 0
    taken = Architecture.load(tmp_path / "out" / "architecture.json")
    assert taken.id == best.id
    taken.build().load_state_dict(torch.load(tmp_path / "out" / "weights.pt", weights_only=True))


def test_a_detector_is_judged_by_its_box_ap(tmp_path, capsys):
    best = finished(tmp_path / "experiment", [0.2, 0.3])[1]
    for path in (tmp_path / "experiment").rglob("result.json"):
        result = read_json(path)
        result["box_AP"], result["mask_AP"] = result.pop("accuracy"), 0.1
        write_json(path, result)
    assert main(["export", str(tmp_path / "experiment"), "--out", str(tmp_path / "out")]) == 0
    assert "box AP 30.00%" in capsys.readouterr().out
    assert Architecture.load(tmp_path / "out" / "architecture.json").id == best.id
    assert print_students(tmp_path / "experiment", Config(ROOT / "experiments" / "coco_mask_rcnn.yml"))
    table = capsys.readouterr().out
    assert "box AP" in table.splitlines()[1]
    assert "20.00%" in table.splitlines()[2]


def test_export_finds_an_experiment_by_its_id(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_json(tmp_path / "nni-experiments" / ".experiment", {"xyz": {"logDir": str(tmp_path / "elsewhere")}})
    finished(tmp_path / "elsewhere" / "xyz", [0.8])
    assert main(["export", "xyz", "--out", str(tmp_path / "out")]) == 0
    assert main(["export", "abc", "--out", str(tmp_path / "out")]) == 2
    assert "there is no experiment 'abc'; NNI knows xyz" in capsys.readouterr().err


def test_export_of_what_is_not_there(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no trial of experiment" in capsys.readouterr().err


def test_export_to_onnx_or_a_sentence(tmp_path, capsys):
    finished(tmp_path / "experiment", [0.8])
    status = main(["export", str(tmp_path / "experiment"), "--out", str(tmp_path / "out"), "--onnx"])
    try:
        import onnx
    except ImportError:
        assert status == 2
        assert "torch.onnx needs the packages onnx and onnxscript" in capsys.readouterr().err
        return
    assert status == 0
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))


@pytest.mark.parametrize(("of_manager", "expected"), [("3", "3"), ("", ""), (None, None)])
def test_the_search_sees_the_gpus_that_the_manager_sees(of_manager, expected):
    """NNI gives the dispatcher CUDA_VISIBLE_DEVICES="", through a shell; above it is the manager."""
    code = "import os, nni_blockswap.dispatcher as d; d.restore_gpus(); print(os.environ.get('CUDA_VISIBLE_DEVICES'))"
    shell = f'SDK_PROCESS=dispatcher CUDA_VISIBLE_DEVICES= /bin/sh -c \'"{sys.executable}" -c "$CODE"; true\'; true'
    environment = {**os.environ, "CODE": code, "CUDA_VISIBLE_DEVICES": of_manager or ""}
    if of_manager is None:
        del environment["CUDA_VISIBLE_DEVICES"]
    done = subprocess.run(
        ["/bin/sh", "-c", shell], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)


def test_gpus_chosen_with_tuner_gpu_indices_stay(monkeypatch):
    monkeypatch.setenv("SDK_PROCESS", "dispatcher")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    restore_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.fixture
def quick(tmp_path):
    """A function: changes to config.yml's classArgs -> a copy that takes seconds, and an environment of its own."""

    def write(**arguments):
        content = yaml.safe_load((ROOT / "config.yml").read_text())
        changes = {"searchSpaceFile": str(ROOT / "search_space.json"), "trialCodeDirectory": str(ROOT)}
        content |= {**changes, "maxTrialNumber": 1, "experimentWorkingDirectory": str(tmp_path / "experiments")}
        content["trialCommand"] += f" --epochs 1 --teacher-epochs 1 --teacher-dir {tmp_path / 'teachers'}"
        content["tuner"]["codeDirectory"] = str(ROOT)
        content["tuner"]["classArgs"] |= {"samples": 3, "batch_size": 8, "students": 1, **arguments}
        (tmp_path / "config.yml").write_text(yaml.safe_dump(content))
        home = {
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return tmp_path / "config.yml", {**os.environ, **home}

    return write


BLOCKSWAP = [sys.executable, "-c", "import sys; from nni_blockswap.cli import main; sys.exit(main())"]


def port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return str(probe.getsockname()[1])


def left_over(folder):
    """Processes that still have to do with ``folder``."""
    return [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or [])
    ]


@pytest.mark.slow  # starts NNI's manager, searches, trains a teacher and a student for an epoch
def test_the_shipped_job_from_check_to_table_and_export(quick, tmp_path):
    config, environment = quick()
    done = subprocess.run(
        [*BLOCKSWAP, "run", str(config), "--port", port()],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Web page: http://localhost:" in done.stdout
    rows = done.stdout[done.stdout.index("student ") :].splitlines()
    assert rows[1].split()[0] == "1"
    folder = Path(rows[1].split()[-1])
    result = json.loads((folder / "result.json").read_text())
    assert f"{result['params']:,}" in rows[1]
    assert f"{result['teacher_accuracy']:.2%}" in rows[2]
    curves = folder.parents[3] / "trials" / folder.name / "output" / "tensorboard"  # where the TensorBoard button looks
    assert any(curves.resolve().glob("events.out.tfevents.*"))
    assert left_over(tmp_path) == []
    assert main(["export", str(folder.parents[3]), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.slow  # starts NNI's manager
def test_an_interrupted_run_leaves_nothing_and_says_how_to_go_on(quick, tmp_path):
    config, environment = quick(samples=100_000)
    running = subprocess.Popen(
        [*BLOCKSWAP, "run", str(config), "--port", port()],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    for line in running.stdout:
        if "candidates" in line:
            break
    running.send_signal(signal.SIGINT)
    rest, _ = running.communicate(timeout=90)
    assert running.returncode == 130
    assert "nnictl resume" in rest
    assert left_over(tmp_path) == []


@pytest.mark.slow  # starts NNI's manager twice, searches, trains a teacher and a student for an epoch
def test_a_killed_manager_and_dispatcher_resume_where_they_were(quick, tmp_path):
    config, environment = quick(samples=400)
    where = port()
    nnictl = partial(subprocess.run, env=environment, cwd=tmp_path, timeout=120, stdout=subprocess.DEVNULL)
    nnictl(["nnictl", "create", "--config", str(config), "--port", where], check=True)
    running = experiment.Experiment(int(where))
    scores = running.folder / "checkpoint" / "search" / "scores.jsonl"
    deadline = time.monotonic() + 400
    while not scores.exists() or scores.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    manager = run._manager(int(where))
    for process in [manager, *manager.children(recursive=True)]:
        process.kill()
    before = scores.read_bytes()
    assert before.count(b"\n") < 400
    for _ in range(run.ATTEMPTS):  # nnictl gives the manager three seconds to come up
        where = port()
        if nnictl(["nnictl", "resume", running.id, "--port", where], check=False).returncode == 0:
            break
    running = experiment.Experiment(int(where))
    try:
        while (status := running.get("check-status"))["status"] not in ("DONE", "ERROR"):
            assert time.monotonic() < deadline
            time.sleep(1)
        assert (status["status"], [trial["status"] for trial in running.trials()]) == ("DONE", ["SUCCEEDED"])
    finally:
        run.stop(running, run._manager(int(where)))
    after = scores.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])
    keys = [(line["init"], line["choices"]) for line in map(json.loads, after.splitlines())]
    assert len(keys) == len(set(keys)) == 400
    assert [student["state"] for student in read_json(running.folder / "checkpoint" / "students.json")] == ["succeeded"]
    assert left_over(tmp_path) == []


@pytest.mark.slow  # starts NNI's manager
def test_a_fault_in_the_search_ends_nnictl_create_with_its_sentence(quick, tmp_path):
    config, environment = quick(budget="1K")
    command = ["nnictl", "create", "--config", str(config), "--port", port(), "--foreground"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert "BlockSwap: No architecture has" in said
    deadline = time.monotonic() + 60
    while left_over(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left_over(tmp_path) == []


def test_what_was_started_is_stopped_when_it_does_not_answer(monkeypatch, tmp_path):
    called = []

    def nnictl(*arguments):
        called.append(arguments[0])
        return subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(run, "nnictl", nnictl)
    with pytest.raises(StateError, match="does not answer"):
        run.start(tmp_path / "config.yml", int(port()))
    assert called == ["create", "stop"]


def test_nnictl_that_cannot_start_is_told_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "ATTEMPTS", 1)
    failing = [sys.executable, "-c", "print('first'); print('last words'); raise SystemExit(1)"]
    monkeypatch.setattr(run, "nnictl", lambda *_: subprocess.Popen(failing, stdout=subprocess.PIPE, text=True))
    with pytest.raises(ConfigError, match="nnictl cannot start the experiment: last words"):
        run.start(tmp_path / "config.yml", 8760)


class Manager(BaseHTTPRequestHandler):
    """Answers as NNI's manager does."""

    def do_GET(self):
        data = [json.dumps(json.dumps(value)) for value in ({"default": 0.75, "epoch": 2}, 0.5)]
        metrics = [
            {"trialJobId": "t0", "sequence": str(1 - number), "data": value} for number, value in enumerate(data)
        ]
        answers = {
            "experiment": {"id": "abc", "logDir": "/logs/abc"},
            "trial-jobs": [{"trialJobId": "t1", "sequenceId": 10}, {"trialJobId": "t0", "sequenceId": 9}],
            "metric-data?type=PERIODICAL": metrics,
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answers[self.path.removeprefix("/api/v1/nni/")]).encode())

    def log_message(self, *_):
        pass


def test_the_web_service_is_understood_and_asked_without_a_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://nowhere.invalid:1")
    with HTTPServer(("localhost", 0), Manager) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            found = experiment.Experiment(server.server_port)
            assert (found.id, found.folder) == ("abc", Path("/logs/abc"))
            assert [trial["trialJobId"] for trial in found.trials()] == ["t0", "t1"]
            assert found.curves() == {"t0": [0.5, 0.75]}
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(StateError, match="does not answer"):
        found.trials()

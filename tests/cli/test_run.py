"""blockswap run: that it starts, ends and leaves nothing behind."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer
from types import SimpleNamespace

import psutil
import pytest
import yaml

from nni_blockswap.cli import main, run
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.experiment import service
from nni_blockswap.experiment.dispatcher import restore_gpus
from nni_blockswap.files import read_json

ROOT = Path(__file__).parents[2]


def test_a_taken_port_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run._free_port(port) > port


@pytest.mark.parametrize(("of_manager", "expected"), [("3", "3"), ("", ""), (None, None)])
def test_the_search_sees_the_gpus_that_the_manager_sees(of_manager, expected):
    """NNI gives the dispatcher CUDA_VISIBLE_DEVICES="", through a shell; above it is the manager."""
    code = "import os; from nni_blockswap.experiment.dispatcher import restore_gpus; restore_gpus(); "
    code += "print(os.environ.get('CUDA_VISIBLE_DEVICES'))"
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
        content["trialCommand"] += f" --epochs 1 --teacher-epochs 1 --teacher-dir {shlex.quote(f'{tmp_path}/teachers')}"
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
    rest, _ = running.communicate(timeout=400)
    assert running.returncode == 130
    assert "nnictl resume" in rest
    assert left_over(tmp_path) == []


def patiently(command, environment, succeeded):
    """Run an nnictl command until it has ``succeeded``: its three seconds for the manager to come up may be too few."""
    for _ in range(run.ATTEMPTS):
        where = port()
        done = subprocess.run(
            ["nnictl", *command, "--port", where], env=environment, capture_output=True, text=True, timeout=400
        )
        if succeeded(done):
            break
    return where, done


@pytest.mark.slow  # starts NNI's manager twice, searches, trains a teacher and a student for an epoch
def test_a_killed_manager_and_dispatcher_resume_where_they_were(quick, tmp_path):
    config, environment = quick(samples=400)
    where, created = patiently(["create", "--config", str(config)], environment, lambda done: done.returncode == 0)
    assert created.returncode == 0, created.stdout
    running = service.Experiment(int(where))
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
    where, _ = patiently(["resume", running.id], environment, lambda done: done.returncode == 0)
    running = service.Experiment(int(where))
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
    command = ["create", "--config", str(config), "--foreground"]
    sentence = "BlockSwap: No architecture has"
    _, done = patiently(command, environment, lambda done: sentence in done.stdout + done.stderr)
    assert sentence in done.stdout + done.stderr
    deadline = time.monotonic() + 400
    while left_over(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left_over(tmp_path) == []


def test_what_was_started_is_stopped_when_it_does_not_answer(monkeypatch, tmp_path):
    called = []

    def nnictl(*arguments):
        called.append(arguments[0])
        return subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE, text=True)

    def silent(port):
        raise StateError("NNI's manager does not answer")

    monkeypatch.setattr(run, "nnictl", nnictl)
    monkeypatch.setattr(run, "Experiment", silent)
    with pytest.raises(StateError, match="does not answer"):
        run.start(tmp_path / "config.yml", 8760)
    assert called == ["create", "stop"]


def test_nnictl_that_cannot_start_is_told_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "ATTEMPTS", 1)
    failing = [sys.executable, "-c", "print('first'); print('last words'); raise SystemExit(1)"]
    monkeypatch.setattr(run, "nnictl", lambda *_: subprocess.Popen(failing, stdout=subprocess.PIPE, text=True))
    with pytest.raises(ConfigError, match="nnictl cannot start the experiment: last words"):
        run.start(tmp_path / "config.yml", 8760)


@pytest.mark.parametrize("name", ["NNI_EXP_ID", "NNI_LOG_DIRECTORY"])
def test_what_a_killed_manager_left_is_ended(tmp_path, name):
    """A trial and the tuner, by what NNI puts into their environments."""
    value = "abc" if name == "NNI_EXP_ID" else str(tmp_path / "log")
    wait = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(wait, stdin=subprocess.PIPE) as manager,
        subprocess.Popen(wait, stdin=subprocess.PIPE, env={name: value}) as left,
        subprocess.Popen(wait, stdin=subprocess.PIPE, env={name: f"{value}d"}) as of_another,
    ):
        gone = psutil.Process(manager.pid)
        manager.kill()
        manager.wait()
        run.stop(SimpleNamespace(id="abc", folder=tmp_path), gone)
        assert (psutil.pid_exists(left.pid), of_another.poll()) == (False, None)
        of_another.kill()


def test_what_runs_is_stopped_also_where_nobody_reads_what_is_said(monkeypatch, tmp_path):
    """As where Ctrl-C ended the other end of a pipe, too, or the terminal is gone."""

    def refuse(*_, **__):
        raise BrokenPipeError

    called = []
    monkeypatch.setattr(run, "print", refuse, raising=False)
    monkeypatch.setattr(run, "nnictl", lambda *words: called.append(words) or SimpleNamespace(communicate=list))
    monkeypatch.setattr(psutil, "wait_procs", lambda processes, timeout: ([], processes))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as manager:
        run.stop(SimpleNamespace(id="abc", folder=tmp_path), psutil.Process(manager.pid))
    assert (called, manager.returncode) == ([("stop", "abc")], -signal.SIGKILL)


def test_a_second_interrupt_on_the_heels_of_the_first_leaves_nothing_running(monkeypatch, tmp_path):
    """As ``timeout`` sends it: while the command says how to go on."""
    stopped = []

    def interrupted(*_):
        raise KeyboardInterrupt

    def say(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(run.check, "find_faults", lambda path: [])
    monkeypatch.setattr(run, "Config", lambda path: SimpleNamespace(path=path))
    monkeypatch.setattr(run, "start", lambda path, port: (SimpleNamespace(id="mine"), None))
    monkeypatch.setattr(run, "_watch", interrupted)
    monkeypatch.setattr(run, "stop", lambda experiment, manager: stopped.append(experiment.id))
    options = SimpleNamespace(config=str(tmp_path / "config.yml"), port=8080)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: say() if "Interrupted" in str(words) else None)
        assert run.run(options) == 130
    assert set(stopped) == {"mine"}


@pytest.mark.parametrize("late", [1, 9])
def test_an_experiment_whose_tuner_comes_too_late_is_started_again(monkeypatch, tmp_path, capsys, late):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "dispatcher.log").write_text("Initial search space: {}")
    started, stopped = [], []

    def create(config, port):
        error = ["Tuner did not connect in 10 seconds. Please check"] if len(started) < late else []
        state = {"status": "ERROR" if error else "RUNNING", "errors": error}
        started.append(SimpleNamespace(folder=tmp_path, get=lambda what: state))
        return started[-1], None

    monkeypatch.setattr(run, "_create", create)
    monkeypatch.setattr(run, "stop", lambda experiment, manager: stopped.append(experiment))
    if late < run.ATTEMPTS:
        assert run.start(tmp_path / "config.yml", 8760) == (started[1], None)
        assert stopped == started[:1]
        assert capsys.readouterr().out == f"{run.LATE}: trying again ...\n"
    else:
        with pytest.raises(ConfigError, match="does not connect in ten seconds, as this machine is busy"):
            run.start(tmp_path / "config.yml", 8760)
        assert stopped == started


class Manager(BaseHTTPRequestHandler):
    """Answers as NNI's manager does."""

    def do_GET(self):
        data = [json.dumps(json.dumps(value)) for value in ({"default": 0.75, "epoch": 2}, 0.5)]
        metrics = [
            {"trialJobId": "t0", "sequence": str(1 - number), "data": value, "timestamp": 90_000 - 40_000 * number}
            for number, value in enumerate(data)
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


class LocalServer(TCPServer):
    """At whichever address this machine calls localhost, of IPv4 or IPv6; no name is looked up for it."""

    address_family = socket.getaddrinfo("localhost", None)[0][0]


def test_the_web_service_is_understood_and_asked_without_a_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://nowhere.invalid:1")
    with LocalServer(("localhost", 0), Manager) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            found = service.Experiment(server.server_address[1])
            assert (found.id, found.folder) == ("abc", Path("/logs/abc"))
            assert [trial["trialJobId"] for trial in found.trials()] == ["t0", "t1"]
            assert service.curves(found.metrics()) == {"t0": [0.5, 0.75]}
            assert service.paces(found.metrics()) == {"t0": 40.0}
        finally:
            server.shutdown()
            thread.join()
    with LocalServer(("localhost", 0), Manager, bind_and_activate=False) as server:
        server.server_bind()  # the port is this process's, and nobody listens
        found.port = server.server_address[1]
        with pytest.raises(StateError, match="does not answer"):
            found.trials()

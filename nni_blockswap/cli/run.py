"""Run an nnictl config in the foreground: check it, follow search and trials, end with a table of the students.

The experiment is NNI's own: its web page, ``nnictl view`` and ``nnictl resume`` work as ever. On a terminal the web
page stays open until Ctrl-C; elsewhere the experiment is stopped when it is done.
"""

import argparse
import signal
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from nni_blockswap.cli import check
from nni_blockswap.cli.following import Follower
from nni_blockswap.cli.interruption import handled
from nni_blockswap.cli.summary import print_students
from nni_blockswap.cli.terminal import Lines
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.fetching import fetch
from nni_blockswap.experiment.service import Experiment, nnictl

ATTEMPTS = 4
"""The machine may be too busy for NNI's manager to come up in time, or somebody else take its port meanwhile."""

LATE = "NNI's tuner does not connect in ten seconds, as this machine is busy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", metavar="CONFIG", help="config file of nnictl")
    parser.add_argument(
        "--port", type=int, default=8080, help="of the web page; the next free one is taken (default 8080)"
    )


def run(options: argparse.Namespace) -> int:
    """Check, start, follow, report, stop."""
    if not 1 <= options.port <= 65535:
        raise ConfigError(f"--port is a whole number from 1 to 65535, not {options.port}.")
    faults = check.find_faults(Path(options.config))
    for fault in faults:
        print(f"{options.config}: {fault}", file=sys.stderr)
    if any(fault.fatal for fault in faults):
        return 2
    config = Config(Path(options.config))
    print("Starting NNI ...", flush=True)
    experiment, manager = start(config.path, options.port)
    try:
        return _watch(experiment, manager, config)
    except KeyboardInterrupt:
        with handled(signal.SIG_IGN):  # a second one on its heels, as `timeout` sends it, leaves nothing running
            with suppress(OSError):  # the terminal or the pipe may have ended, too
                print(f"\nInterrupted. To go on:  nnictl resume {experiment.id}")
                print(f"To look at it:  nnictl view {experiment.id}", flush=True)
            stop(experiment, manager)
        return 130
    finally:
        stop(experiment, manager)


def _watch(experiment: Experiment, manager: Any, config: Config) -> int:
    print(f"Experiment {experiment.id}. Web page: http://localhost:{experiment.port}", flush=True)
    print(
        f"NNI opens port {experiment.port} to the whole network, without a password; SECURITY.md says how to shield it."
    )
    with Lines() as lines:
        good = Follower(experiment, lines, config.metric).follow()
    for fault in fetch(experiment.folder):
        print(fault, file=sys.stderr)
    good = print_students(experiment.folder, config) and good
    print(f"All of it: {experiment.folder}; again in the browser: nnictl view {experiment.id}")
    if sys.stdout.isatty() and sys.stdin.isatty():
        print(f"The web page http://localhost:{experiment.port} stays open until Ctrl-C.")
        try:
            manager.wait()
        except KeyboardInterrupt:
            print()
    return 0 if good else 1


def start(config: Path, port: int) -> tuple[Experiment, Any]:
    """Start the experiment; (itself, NNI's manager's process). An interrupt while it starts stops it again."""
    for attempt in range(ATTEMPTS):
        if attempt:
            print(f"{LATE}: trying again ...", flush=True)
        experiment, manager = _create(config, port)
        try:
            if _has_met_tuner(experiment):
                return experiment, manager
        except BaseException:
            stop(experiment, manager)
            raise
        stop(experiment, manager)
    raise ConfigError(f"{LATE}; try again later.")


def _create(config: Path, port: int) -> tuple[Experiment, Any]:
    for _ in range(ATTEMPTS):
        port = _free_port(port)
        creation = nnictl("create", "--config", str(config), "--port", str(port))
        interrupted = False
        while True:
            try:
                said, _ = creation.communicate()
                break
            except KeyboardInterrupt:
                interrupted = True  # what was started has to be known before it can be stopped
        if creation.returncode == 0:
            try:
                experiment, manager = Experiment(port), _manager(port)
            except BaseException:
                nnictl("stop", "--port", str(port)).communicate()
                raise
            if interrupted:
                stop(experiment, manager)
                raise KeyboardInterrupt
            return experiment, manager
        if interrupted:
            raise KeyboardInterrupt
        port += 1
    lines = [line for line in said.splitlines() if line.strip()] or ["no output"]
    raise ConfigError(f"nnictl cannot start the experiment: {lines[-1].strip()}")


def _has_met_tuner(experiment: Experiment) -> bool:
    """Wait until NNI and the tuner have met; False where NNI has given up after its ten seconds."""
    log = experiment.folder / "log" / "dispatcher.log"
    while True:
        state = experiment.get("check-status")
        if any("did not connect" in error for error in state["errors"]):
            return False
        if state["status"] == "ERROR" or (log.exists() and "Initial search space" in log.read_text(encoding="utf-8")):
            return True
        time.sleep(0.2)


def stop(experiment: Experiment, manager: Any) -> None:
    """Stop the experiment and wait until its processes are gone; a second Ctrl-C does not leave them behind."""
    with handled(signal.SIG_IGN):
        family = _family(experiment, manager)
        if not family:
            return
        with suppress(OSError):  # nobody may be there any more to read it
            print("Stopping the experiment ...", flush=True)
        if manager.is_running():
            nnictl("stop", experiment.id).communicate()
        else:
            _tell(family, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=10)
        _tell(alive, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=10)


def _family(experiment: Experiment, manager: Any) -> list[Any]:
    """The manager and its offspring; where it was killed, the tuner and trials that it left, by their environment."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        found = {manager, *manager.children(recursive=True)}
    for process in psutil.process_iter(["environ"]):
        given = process.info["environ"] or {}  # of other users' there is none to be had
        of_trial, of_tuner = given.get("NNI_EXP_ID"), given.get("NNI_LOG_DIRECTORY")
        if of_trial == experiment.id or of_tuner == str(experiment.folder / "log"):
            found.add(process)
    return [process for process in found if process.is_running()]


def _tell(processes: Iterable[Any], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _free_port(first: int) -> int:
    """``first``, or the next port that nobody uses."""
    for port in range(first, min(first + 100, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise ConfigError(f"no port from {first} on is free; give another one with --port.")


def _manager(port: int) -> Any:
    """The process that serves the web page."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "--experiments-directory" in words and words[words.index("--port") + 1] == str(port):
            return process
    raise StateError(f"NNI's manager at port {port} has ended right after its start; see nnictl experiment list.")

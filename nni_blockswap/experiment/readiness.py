"""Whether the machines of NNI's remote training service are ready for trials: asked before any starts."""

import argparse
import json
import posixpath
import shlex
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, requires
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from nni_blockswap.errors import ConfigError, MachineError
from nni_blockswap.experiment import probe
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.machines import RemoteMachine, connected, machines_of, run
from nni_blockswap.training.sources import is_file
from nni_blockswap.trust import IMPORTED, add_allow, packages_in

FILES, BYTES = 2000, 300 * 2**20
"""As much of trialCodeDirectory as NNI uploads."""

TRIALS = ("trial.distill", "trial.detect")
"""This project's own, by their modules."""

FIND_PYTHON = """
[ -z "$1" ] || [ -x "$1/python" ] || [ -x "$1/python3" ] || { echo "holds no program python"; exit 9; }
PATH="${1:+$1:}$PATH"
found=$(command -v "$2" || command -v python3) || { echo "has no python on its PATH"; exit 9; }
exec "$found" - "$3"
"""
"""As NNI looks for it. Given a pythonPath, the interpreter of trialCommand and what the probe is asked."""


def faults(config: Config) -> list[str]:
    """A sentence for each thing that would keep a trial from running."""
    machines = _machines(config)
    if not machines:
        return []
    found = [*_of_config(config, machines), *_upload(config.trial_directory), *_uploaded(config)]
    with closing(_listening()) as manager, ThreadPoolExecutor(len(machines)) as pool:
        asked = _asked(config, manager.getsockname()[1])
        for one in pool.map(lambda machine: list(_of_machine(machine, config, asked)), machines):
            found += one
    return found


def warnings(config: Config) -> list[str]:
    """A sentence for each thing that a person may not want."""
    machines = _machines(config)
    if not machines:
        return []
    given, found = _given(config), list(_not_allowed(config))
    if len(machines) < 2:
        return found
    if given.teacher is None and not posixpath.isabs(given.teacher_dir):
        found.append(
            "every machine trains a teacher of its own; train one here, python -m trial.teacher --out teachers/mine, "
            "and give it to all of them, --teacher teachers/mine/weights.pt."
        )
    if config.content.get("trialConcurrency") == 1:
        found.append(
            f"trialConcurrency is 1, so one of {len(machines)} machines works at a time; set it to their number."
        )
    return found


def _not_allowed(config: Config) -> Iterator[str]:
    """Packages of the user's that this project's trials have to be allowed: no signature tells them there."""
    given = _given(config)
    allowed = (*IMPORTED, *given.allow, *packages_in(given.space))
    lacking = [name for name in _of_networks(config) if name not in allowed]
    if lacking and given.module in TRIALS:
        names = " ".join(lacking)
        yield (
            f"trials on another machine import {names} only where their command says so; add --allow {names} to "
            "trialCommand."
        )


def _of_networks(config: Config) -> list[str]:
    """Packages of the import paths that an architecture's parameters hold."""
    return packages_in([config.arguments.get(name) for name in ("space", "space_args", "model", "model_args")])


def _machines(config: Config) -> list[RemoteMachine]:
    return machines_of(config.service, config.path.parent)


def _given(config: Config) -> argparse.Namespace:
    """What the trial's command says of files, in the options of this project's trials."""
    command = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in (
        ("--space", None),
        ("--data", None),
        ("--data-root", None),
        ("--teacher", None),
        ("--teacher-dir", "teachers"),
        ("--init", "fresh"),
    ):
        command.add_argument(name, default=default)
    add_allow(command)
    command.add_argument("-m", dest="module")
    return command.parse_known_args(_words(config))[0]


def _words(config: Config) -> list[str]:
    with suppress(ConfigError):  # which others tell
        return config.trial_command
    return []


def _files(config: Config) -> list[str]:
    """Files and folders that a trial reads."""
    given = _given(config)
    start, _, library = given.init.partition("=")
    teacher = given.teacher if given.teacher is not None and is_file(given.teacher) else None
    return [path for path in (given.data_root, teacher, library if start == "library" else None) if path]


def _of_config(config: Config, machines: list[RemoteMachine]) -> Iterator[str]:
    if config.service.get("reuseMode"):
        yield "trainingService.reuseMode is true, which puts results where nobody finds them; leave it out."
    address = _address(config)
    away = [machine for machine in machines if not _is_loopback(machine.host)]
    if away and (address is None or _is_loopback(str(address))):
        yield (
            f"nniManagerIp is {address or 'missing'}, and trials on {away[0]} report to that address; set it to this "
            "machine's, as the others see it."
        )


def _address(config: Config) -> Any:
    return config.service.get("nniManagerIp", config.content.get("nniManagerIp"))


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _upload(directory: Path) -> Iterator[str]:
    """Whether NNI takes the directory; where a .nniignore narrows it, NNI alone can tell."""
    if (directory / ".nniignore").exists() or not directory.is_dir():
        return
    count = size = 0
    for path in directory.rglob("*"):
        if path.is_file():
            count, size = count + 1, size + path.stat().st_size
        if count > FILES or size > BYTES:
            yield (
                f"trialCodeDirectory '{directory}' is uploaded to every machine, and NNI takes {FILES} files and "
                f"{BYTES // 2**20} MB at most; name a smaller folder, or leave files out by a .nniignore in it."
            )
            return


def _uploaded(config: Config) -> Iterator[str]:
    """Relative paths are below the trial's folder, and come along with it."""
    for path in _files(config):
        if not _absolute(path) and not (config.trial_directory / path).exists():
            yield (
                f"the trials read '{path}', which is not in the trialCodeDirectory '{config.trial_directory}' that is "
                "uploaded; put it there, or name its place on the machines by an absolute path."
            )


def _absolute(path: str) -> bool:
    return path.startswith(("/", "~"))


def _listening() -> socket.socket:
    """A socket where NNI's web page would be, or on any port."""
    with suppress(OSError):
        return socket.create_server(("", 8080))
    return socket.create_server(("", 0))


def _asked(config: Config, port: int) -> dict[str, Any]:
    """What the probe is to look for."""
    given = _given(config)
    modules = {
        *_of_networks(config),
        *packages_in(given.data),
        str(given.module or "nni_blockswap").partition(".")[0],
        "nni_blockswap",
    }
    own = {path.stem for path in config.trial_directory.glob("*") if path.is_dir() or path.suffix == ".py"}
    address = _address(config)
    return {
        "paths": [path for path in _files(config) if _absolute(path)],
        "modules": sorted(modules - own),
        "address": None if address is None else [address, port],
    }


def _of_machine(machine: RemoteMachine, config: Config, asked: dict[str, Any]) -> Iterator[str]:
    interpreter = next((word for word in _words(config) if posixpath.basename(word).startswith("python")), "python")
    words = ["sh", "-c", FIND_PYTHON, "sh", machine.python_path or "", interpreter, json.dumps(asked)]
    try:
        with connected(machine) as client:
            status, said, complaint = run(client, shlex.join(words), Path(probe.__file__).read_text(encoding="utf-8"))
    except MachineError as error:
        yield str(error)
        return
    if status == 9:
        subject = f"pythonPath '{machine.python_path}' on {machine}" if "holds" in said else str(machine)
        yield f"{subject} {said.strip()}; pythonPath is the folder with the python that trials are started by."
        return
    try:
        found = json.loads(said.strip().splitlines()[-1])
    except (ValueError, IndexError):
        reason = (complaint or said).strip().splitlines()
        yield f"{machine} does not run Python: {reason[-1] if reason else f'status {status}'}; see to it there."
        return
    yield from _lacks(machine, found)


def _lacks(machine: RemoteMachine, found: dict[str, Any]) -> Iterator[str]:
    """What is wrong with what the probe found."""
    if tuple(found["python"]) < (3, 10):
        version = ".".join(map(str, found["python"]))
        yield f"Python on {machine} is {version}, and trials need 3.10 or newer; name another by pythonPath."
        return
    wanted = [one for one in map(Requirement, _requirements()) if one.marker is None or one.marker.evaluate()]
    absent = [
        str(one) for one in wanted if not one.specifier.contains(found["packages"].get(one.name.lower(), "0"), True)
    ]
    if absent:
        yield f"Python on {machine} lacks {', '.join(absent)}; install what this project needs, or set pythonPath."
    if not found["pip"]:
        yield f"Python on {machine} has no pip, which NNI starts first; there: python -m ensurepip."
    if found["absent_modules"]:
        yield (
            f"{', '.join(found['absent_modules'])} cannot be imported on {machine}; install it there, or put it into "
            "trialCodeDirectory, which is uploaded."
        )
    yield from (f"'{path}' is not on {machine}; put it there." for path in found["absent_paths"])
    if found["no_way_back"] is not None:
        yield (
            f"trials on {machine} cannot report to this machine ({found['no_way_back']}); set nniManagerIp to its "
            "address as they see it, and let them through to the web page's port."
        )


def _requirements() -> list[str]:
    """What this package needs."""
    try:
        return requires("nni-blockswap") or []
    except PackageNotFoundError:  # a checkout that nobody installed: its code is uploaded and its needs are not known
        return ["nni>=3.0,<4", "torch", "pytorch-lightning"]

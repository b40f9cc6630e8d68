"""An NNI experiment from outside: its manager's web service while it runs, and its folder at any time."""

import json
import logging
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.experiment.fetching import fetch
from nni_blockswap.experiment.students import identity
from nni_blockswap.files import expanded, read_json
from nni_blockswap.results.trial import read_result, results_below

PATIENCE = 120.0
"""Seconds for NNI's manager to answer on a busy machine; one that is gone refuses at once."""

_log = logging.getLogger(__name__)
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Experiment:
    """A running experiment.

    Args:
        port: of its web page.
        patience: seconds for its manager's first answer.

    Attributes:
        id: as nnictl takes it.
        folder: what NNI writes goes below it.
    """

    def __init__(self, port: int, patience: float = PATIENCE) -> None:
        self.port = port
        profile = self._ask(urllib.request.Request(self._address("experiment")), patience)
        self.id = str(profile["id"])
        self.folder = Path(profile["logDir"])

    def get(self, what: str) -> Any:
        """What the web service answers. Raises StateError where the manager is gone."""
        return self._ask(urllib.request.Request(self._address(what)))

    def put(self, what: str, content: Any) -> None:
        """Change ``what`` to ``content``. Raises StateError where the manager is gone or refuses."""
        kind = {"Content-Type": "application/json"}
        self._ask(urllib.request.Request(self._address(what), json.dumps(content).encode(), kind, method="PUT"))

    def _address(self, what: str) -> str:
        return f"http://localhost:{self.port}/api/v1/nni/{what}"

    def _ask(self, request: urllib.request.Request, patience: float = PATIENCE) -> Any:
        try:
            with _direct.open(request, timeout=patience) as answer:
                return json.loads(answer.read() or "null")
        except (OSError, ValueError, HTTPException) as error:
            raise StateError(
                f"NNI's manager at port {self.port} does not answer ({error}); nnictl resume goes on if it was stopped."
            ) from error

    def trials(self) -> list[dict[str, Any]]:
        """All trials, in the order of their start."""
        return sorted(self.get("trial-jobs"), key=lambda trial: int(trial.get("sequenceId", 0)))

    def metrics(self) -> list[dict[str, Any]]:
        """The intermediate results so far of all trials, for ``curves`` and ``paces``."""
        found: list[dict[str, Any]] = self.get("metric-data?type=PERIODICAL")
        return found

    def trial_folder(self, trial: str) -> Path:
        """Where a trial writes."""
        return next(self.folder.glob(f"environments/*/trials/{trial}"), self.folder)


def curves(metrics: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Intermediate results so far, by trial."""
    found: dict[str, dict[int, float]] = {}
    for metric in metrics:
        value = json.loads(json.loads(metric["data"]))
        value = value["default"] if isinstance(value, dict) else value
        found.setdefault(metric["trialJobId"], {})[int(metric["sequence"])] = float(value)
    return {trial: [values[epoch] for epoch in sorted(values)] for trial, values in found.items()}


def paces(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds from one intermediate result to the next, by trial: of those that have two."""
    times: dict[str, list[float]] = {}
    for metric in metrics:
        times.setdefault(metric["trialJobId"], []).append(metric["timestamp"] / 1e3)
    return {trial: (max(found) - min(found)) / (len(found) - 1) for trial, found in times.items() if len(found) > 1}


def folder_of(name: str) -> Path:
    """Where results are: ``name`` itself where it is a folder, else the folder of the experiment with that id.

    What an experiment's trials wrote on other machines is brought there first.

    Raises:
        ConfigError: it is neither a folder nor an experiment that ran on this machine.
    """
    return Path(name) if Path(name).is_dir() else experiment_folder(name, "and no such folder")


def experiment_folder(name: str, lacking: str = "of that id") -> Path:
    """The folder of the experiment called ``name``. Raises ConfigError where NNI knows none on this machine."""
    known = known_experiments()
    if name not in known:
        raise ConfigError(
            f"there is no experiment '{name}' {lacking}; "
            f"NNI knows {', '.join(known) or 'none'} (see nnictl experiment list --all)."
        )
    folder = expanded(known[name]["logDir"]) / name
    for fault in fetch(folder):
        _log.warning("%s", fault)
    return folder


def known_experiments() -> dict[str, Any]:
    """What NNI notes of the experiments of this machine, by id."""
    try:
        found: dict[str, Any] = read_json(Path("~/nni-experiments/.experiment").expanduser())
    except (OSError, ValueError):
        return {}
    return found


def results(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """What ``ended`` has, by the identity that the tuner gave: of two of one the later."""
    return {identity(result): (place, result) for place, result in ended(folder)}


def ended(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(its folder, its result.json) of each trial at or below ``folder`` that came to an end, the last one last.

    Raises:
        StateError: a result is damaged.
    """
    return [(path.parent, read_result(path)) for path in results_below([folder])]


NNICTL = """
import sys
from nni.experiment import launcher
from nni.tools.nnictl.nnictl import parse_args
launcher._check_rest_server.__defaults__ = (20, None)
sys.exit(parse_args())
"""
"""Gives NNI's manager twenty seconds to come up: nnictl by itself gives it three, too few on a busy machine."""


def nnictl(*arguments: str) -> "subprocess.Popen[str]":
    """Start nnictl, its output readable.

    The environment's programs come first on its PATH, for trials and TensorBoard. It has no terminal: Ctrl-C is for
    this process, which then stops what it started.
    """
    programs = Path(sys.executable).parent
    search = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    local = ",".join(filter(None, [os.environ.get("no_proxy"), "localhost", "127.0.0.1"]))
    return subprocess.Popen(
        [sys.executable, "-c", NNICTL, *arguments],
        env={**os.environ, "PATH": search, "no_proxy": local},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

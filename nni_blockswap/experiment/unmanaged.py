"""An experiment of an nnictl config without NNI: its search here, its trials in processes, one after the other.

For a machine on which nobody watches and everything has to be there at the end. What an interruption leaves is taken up
by the next call: scores, the list of trials, and each trial from its last epoch.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from nni_blockswap.architecture import Architecture
from nni_blockswap.conversation import OnProgress, unheard
from nni_blockswap.errors import StateError
from nni_blockswap.experiment.classargs import read_settings
from nni_blockswap.experiment.config import Config
from nni_blockswap.files import read_json, write_json
from nni_blockswap.results.trial import RESULT
from nni_blockswap.studies.comparison import Comparison, contestants
from nni_blockswap.trust import distrust

LOG, TRIALS = "trial.log", "trials"

K = TypeVar("K")

LIST, ASKED = "trials.json", "asked.json"
"""What the trials are, and what was asked for that gave them."""

OF_THE_MACHINE = ("data_root", "device", "processes", "recompute", "students")
"""Class arguments that change no trial."""

NAMED = ("method", "variant", "seed", "nonzero")
"""Of a trial's parameters, those that its command takes as options."""

GRACE = 30.0
"""Seconds for a trial to end by itself once it is told to."""


@dataclass(frozen=True)
class Changes:
    """What an experiment has otherwise than its config says.

    Attributes:
        class_args: of the tuner, over the config's.
        comparison: fields of the comparison, over the config's.
        trial: options for the trial's command, after the config's: of an option that is there twice the last one holds.
        teachers: folder of the trained teachers.
    """

    class_args: Mapping[str, Any]
    comparison: Mapping[str, Any]
    trial: Sequence[str] = ()
    teachers: Path | None = None


def run_experiment(
    config: Config,
    changes: Changes,
    out: Path,
    *,
    at_once: int = 1,
    on_progress: OnProgress = unheard,
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Search, then train what the comparison of ``config`` names, each trial in a folder below ``out``/trials.

    Args:
        at_once: trials side by side.

    Returns:
        A sentence for each trial that failed; the next call tries them again.

    Raises:
        KeyboardInterrupt: Ctrl-C; the trials that ran are ended.
        StateError: ``out`` holds trials of other settings.
    """
    out = out.resolve()  # trials run in a folder of their own
    command = [*config.trial_command, *changes.trial]
    if changes.teachers is not None:
        command += ["--teacher-dir", str(changes.teachers.resolve())]
    trials = _trials(config, changes, out, on_progress)
    folders = [out / TRIALS / f"{number:03d}" for number in range(len(trials))]
    waiting = [pair for pair in zip(folders, trials, strict=True) if not (pair[0] / RESULT).exists()]
    say(f"{len(trials)} trials, {len(trials) - len(waiting)} of them done already.")

    ending = Event()

    def run(pair: tuple[Path, Mapping[str, Any]]) -> str | None:
        folder, parameters = pair
        fault = _run(command, parameters, folder, config, at_once, ending)
        named = " ".join(str(parameters[name]) for name in NAMED if name in parameters)
        say(f"{folder.name} {named}: {fault or 'done'}")
        return None if fault is None else f"{folder}: {fault}"

    with ThreadPoolExecutor(at_once) as pool:
        try:
            return [fault for fault in pool.map(run, waiting) if fault is not None]
        except BaseException:  # what runs would go on for hours, and nobody would wait for it
            ending.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _trials(config: Config, changes: Changes, out: Path, on_progress: OnProgress) -> list[dict[str, Any]]:
    """Parameters of the trials, as an earlier call found them, or found now."""
    path = out / LIST
    arguments = {**config.arguments, **changes.class_args}
    comparison = {**config.arguments.get("comparison", {}), **changes.comparison}
    search_space = {} if "space_args" in changes.class_args else config.search_space()  # that is of another space
    asked = json.loads(json.dumps({**arguments, "comparison": comparison, "search space": search_space}))
    asked = {name: value for name, value in asked.items() if name not in OF_THE_MACHINE}
    if path.exists():
        _check_asked(out, asked)
    else:
        write_json(out / ASKED, asked)
        settings, _ = read_settings({**arguments, "students": 1}, search_space, config.code_directory)
        write_json(path, contestants(Comparison.read(comparison), settings, out / "search", on_progress))
    return _kept(path, lambda trials: [dict(one) for one in trials])


def _check_asked(out: Path, asked: Mapping[str, Any]) -> None:
    """Raise StateError where the trials of ``out`` are what something else was asked for, if that is known."""
    before: Mapping[str, Any] = _kept(out / ASKED, dict) if (out / ASKED).exists() else asked
    differ = [name for name in sorted({**before, **asked}) if before.get(name) != asked.get(name)]
    if differ:
        raise StateError(
            f"'{out}' holds the trials of another {', another '.join(differ)}; set that back, or give another folder."
        )


def _kept(path: Path, form: Callable[[Any], K]) -> K:
    """What ``form`` makes of a file's content. Raises StateError where that is damaged."""
    try:
        return form(read_json(path))
    except (ValueError, TypeError) as error:
        raise StateError(f"'{path}' is damaged ({error}); delete it and start again.") from error


def _run(
    command: Sequence[str], parameters: Mapping[str, Any], folder: Path, config: Config, at_once: int, ending: Event
) -> str | None:
    """Run one trial; the last line that it said, where it failed."""
    with distrust(config.packages):  # the parameters may stem from a file
        Architecture.from_parameters(parameters).save(folder / "given.json")
    interpreter, *rest = command
    given = ["--architecture", folder / "given.json", "--out", folder]
    if config.packages:
        given += ["--allow", *config.packages]
    for name in NAMED:
        if name in parameters:
            given += [f"--{name}", parameters[name]]
    if "recipe" in parameters:
        given += ["--recipe", json.dumps(parameters["recipe"])]
    words = [sys.executable if interpreter.startswith("python") else interpreter, *rest, *map(str, given)]
    threads = max(1, (os.cpu_count() or 1) // at_once)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with (folder / LOG).open("ab") as log:
        status = _status(
            subprocess.Popen(words, cwd=config.trial_directory, env=environment, stdout=log, stderr=subprocess.STDOUT),
            ending,
        )
    if status == 0 and (folder / RESULT).exists():
        return None
    lines = (folder / LOG).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its command ended with status {status} and said nothing."


def _status(process: "subprocess.Popen[bytes]", ending: Event) -> int:
    """A trial's exit status; once ``ending`` is set it is told to end, and killed where it does not."""
    while not ending.is_set():
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.2)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=GRACE)
    process.kill()
    return process.wait()

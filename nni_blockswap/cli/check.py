"""Find every fault of an nnictl config at once, before anything starts."""

import argparse
import contextlib
import io
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nni_blockswap.errors import BlockSwapError
from nni_blockswap.experiment.config import Config

TUNER = "nni_blockswap.tuner.BlockSwapTuner"


@dataclass(frozen=True)
class Fault:
    """One sentence: the rule, the value that breaks it, what to do. A warning keeps nothing from running."""

    sentence: str
    fatal: bool = True

    def __str__(self) -> str:
        return self.sentence if self.fatal else f"warning: {self.sentence}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", metavar="CONFIG", help="config file of nnictl")


def run(options: argparse.Namespace) -> int:
    """Print the faults, a line each."""
    faults = find_faults(Path(options.config))
    for fault in faults:
        print(f"{options.config}: {fault}", file=sys.stderr)
    if any(fault.fatal for fault in faults):
        return 2
    print(f"{options.config}: no fault found.")
    return 0


def find_faults(path: Path) -> list[Fault]:
    """Every fault of the config at ``path``.

    Raises:
        ConfigError: it cannot be read at all.
    """
    config = Config(path)
    with _importable(config.code_directory, config.trial_directory):
        found = [fault for check in (_fields, _limits, _tuner, _search, _trial) for fault in check(config)]
    return sorted(dict.fromkeys(found), key=lambda fault: not fault.fatal)


def _fields(config: Config) -> Iterator[Fault]:
    """NNI's own fields and types."""
    from nni.experiment.config import ExperimentConfig, LocalConfig, utils
    from nni.experiment.config.algorithm import _AlgorithmConfig

    service = config.content.get("trainingService")
    service = service if isinstance(service, dict) else {}
    kinds = {"": (config.content, ExperimentConfig), "tuner.": (config.tuner, _AlgorithmConfig)}
    if service.get("platform", "local") == "local":
        kinds["trainingService."] = service, LocalConfig
    for where, (content, kind) in kinds.items():
        known = {_camel(one.name) for one in fields(kind)}
        for name in content.keys() - known:
            near = get_close_matches(str(name), known, 1, 0.4)
            yield Fault(f"nnictl has no field '{where}{name}'; {f'did you mean {near[0]}?' if near else 'remove it.'}")
    missing = [
        name for name in ("trialCommand", "trialConcurrency", "trainingService", "tuner") if name not in config.content
    ]
    yield from (Fault(f"'{name}' is missing; add it.") for name in missing)
    if "searchSpace" not in config.content and "searchSpaceFile" not in config.content:
        yield Fault("neither searchSpaceFile nor searchSpace is there; write one with blockswap space --json.")
    utils.set_base_path(config.path.parent)
    try:
        ExperimentConfig(**config.content).validate()
    except Exception as error:  # NNI raises of all kinds, stops at the first fault, and names only some
        text = " ".join(str(error).split()).rstrip(".")
        if text and "does not have field" not in text and not any(_snake(name) in text for name in missing):
            yield Fault(f"nnictl refuses the config: {text}.")
    finally:
        utils.unset_base_path()


def _limits(config: Config) -> Iterator[Fault]:
    """Numbers that NNI takes and that then do harm."""
    content = config.content
    for name in ("trialConcurrency", "maxTrialNumber"):
        value = content.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield Fault(f"{name} is a whole number of at least 1, not {value!r}.")
    students, trials = config.arguments.get("students", 3), content.get("maxTrialNumber")
    if trials is None:
        yield Fault(
            f"maxTrialNumber is missing, and without it nothing is ever DONE; set it to {students}, the students."
        )
    elif isinstance(trials, int) and isinstance(students, int) and trials > students:
        yield Fault(
            f"maxTrialNumber is {trials} and there are {students} students, so it is never DONE; set both alike."
        )
    elif trials != students:
        yield Fault(
            f"maxTrialNumber is {trials}, so only that many of the {students} students are trained.", fatal=False
        )
    if isinstance(content.get("trialConcurrency"), int) and content["trialConcurrency"] > 1:
        yield Fault(
            f"trialConcurrency is {content['trialConcurrency']}; above 1 NNI's web page and exports show trials with "
            "each other's parameters (microsoft/nni issue 5726); the students' files and blockswap's table stay right.",
            fatal=False,
        )
    service = content.get("trainingService")
    service = service if isinstance(service, dict) else {}
    gpus = service.get("trialGpuNumber", content.get("trialGpuNumber"))
    if gpus and service.get("maxTrialNumberPerGpu", 1) == 1 and service.get("platform", "local") == "local":
        yield Fault(
            f"trialGpuNumber is {gpus}, which NNI cannot schedule on a machine with as many GPUs, and fills its memory "
            "trying; leave it out (trials use the GPU all the same), or add maxTrialNumberPerGpu: 2 to trainingService."
        )


def _tuner(config: Config) -> Iterator[Fault]:
    """The tuner's class and the names and types of its arguments."""
    from nni_blockswap.experiment.classargs import argument_faults

    name = config.tuner.get("className")
    if config.tuner and name != TUNER:
        yield Fault(f"tuner.className is {TUNER}, not {name!r}.")
    if name and "codeDirectory" not in config.tuner:
        yield Fault(
            "tuner.codeDirectory is missing; NNI wants it with every className: set it to '.', this project's folder."
        )
    elif not config.code_directory.is_dir():
        yield Fault(f"tuner.codeDirectory is a folder, and '{config.code_directory}' is none.")
    if config.tuner and not isinstance(config.tuner.get("classArgs"), dict):
        yield Fault("tuner.classArgs is missing; it gives space, data and budget at least.")
    if config.arguments:
        yield from map(Fault, argument_faults(config.arguments))
        yield from _attempt(lambda: _settings(config))


def _settings(config: Config) -> None:
    """Raise BlockSwapError unless search and library can be set up as they are written."""
    from nni_blockswap.experiment.classargs import read_settings

    settings, _ = read_settings(config.arguments, config.search_space() or {}, config.code_directory)
    if isinstance(config.arguments.get("library"), dict):
        from nni_blockswap.training.schooling import LibraryPlan

        LibraryPlan.read(config.arguments["library"], settings)


def _search(config: Config) -> Iterator[Fault]:
    """Space, substitutes, budget, data and the machine: what the search would stumble over."""
    from nni_blockswap.architecture import cost_table
    from nni_blockswap.blocks.nni_format import from_nni
    from nni_blockswap.cost.budget import Budget
    from nni_blockswap.experiment.classargs import read_settings
    from nni_blockswap.library.choosing import PROXIES
    from nni_blockswap.methods import METHODS
    from nni_blockswap.methods.sampler import Sampler
    from nni_blockswap.scoring.machine import resolve_device, resolve_precision
    from nni_blockswap.scoring.proxies.combination import parts
    from nni_blockswap.studies.comparison import Comparison, faults

    arguments = config.arguments

    def affordable() -> None:
        budget = Budget.parse(arguments["budget"], arguments.get("tolerance"), arguments.get("at_most", False))
        budget = budget.capped() if arguments.get("library") else budget
        table = cost_table(arguments["space"], arguments.get("space_args", {}), budget.resources)
        Sampler(table.narrowed(from_nni(config.search_space() or {})), budget)

    def comparable() -> Iterator[Fault]:
        settings, _ = read_settings(arguments | {"students": 1}, config.search_space(), config.code_directory)
        yield from (Fault(str(error)) for error in faults(Comparison.read(arguments["comparison"]), settings))

    def usable() -> None:
        resolve_precision(arguments.get("precision", "auto"), resolve_device(arguments.get("device", "auto")))

    if isinstance(arguments.get("space"), str) and "budget" in arguments:
        yield from _attempt(affordable)
        if arguments.get("comparison"):
            compared: list[Fault] = []
            yield from _attempt(lambda: compared.extend(comparable()))
            yield from compared
    if isinstance(arguments.get("data"), str):
        root = arguments.get("data_root")
        batch = arguments.get("batch_size", 128)
        root = None if root is None else config.code_directory / Path(str(root)).expanduser()

        yield from _attempt(lambda: _fits(config, arguments["data"], root, arguments.get("data_options", {}), batch))
    if arguments.get("proxy") not in PROXIES:
        yield from _attempt(lambda: parts(arguments.get("proxy", "fisher")))
    yield from _attempt(lambda: METHODS[arguments.get("method", "uniform")])
    yield from _attempt(usable)


def _fits(config: Config, name: str, root: Path | None, options: Mapping[str, Any], batch_size: int) -> None:
    """Raise BlockSwapError unless there is a minibatch of a data set, and the networks of the space are for it."""
    from nni_blockswap.scoring.scorer import check_fit
    from nni_blockswap.tasks import make_task

    task = make_task(name, None if root is None else str(root), **options)
    images = task.minibatch(batch_size, seed=0)
    check_fit(config.arguments["space"], config.arguments.get("space_args", {}), task, images)


def _trial(config: Config) -> Iterator[Fault]:
    """The trial's command: its module can be imported and its options are understood."""
    command = config.content.get("trialCommand")
    if not isinstance(command, str):
        return
    if not config.trial_directory.is_dir():
        yield Fault(f"trialCodeDirectory is a folder, and '{config.trial_directory}' is none.")
        return
    try:
        words = shlex.split(command)
    except ValueError as error:
        yield Fault(f"trialCommand cannot be split into words ({error}): {command!r}.")
        return
    if "-m" not in words[:-1]:
        return
    name, options = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    try:
        found = find_spec(name) is not None
    except ImportError:
        found = False
    if not found:
        yield Fault(
            f"the trial's module '{name}' is not in '{config.trial_directory}'; correct the command or the directory."
        )
        return
    trial = import_module(name)
    if callable(getattr(trial, "parser", None)):
        yield from _parse(trial, options, config)


def _parse(trial: Any, options: list[str], config: Config) -> Iterator[Fault]:
    """Let the trial read its own options and say whether it could train by them, and its task find its data."""
    parser: argparse.ArgumentParser = trial.parser()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given = parser.parse_args(options)
    except SystemExit:
        reason = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        yield Fault(f"trialCommand: {reason}; see {parser.prog} --help.")
        return
    if callable(getattr(trial, "check", None)):
        yield from _attempt(lambda: trial.check(given))
    data = getattr(given, "data", None)
    if data is not None and data != config.arguments.get("data", data):
        yield Fault(f"the tuner searches on {config.arguments['data']} and the trial trains on {data}; set both alike.")
    elif data is not None:
        from nni_blockswap.key_values import key_values

        root = None if given.data_root is None else config.trial_directory / Path(given.data_root).expanduser()

        yield from _attempt(lambda: _fits(config, data, root, key_values(given.data_option, "--data-option"), 1))


def _attempt(action: Callable[[], object]) -> Iterator[Fault]:
    try:
        action()
    except BlockSwapError as error:
        yield Fault(str(error))
    except (TypeError, ValueError, AttributeError, KeyError):
        pass  # an argument of the wrong type, which has been reported


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


@contextlib.contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    """Let modules be imported from ``folders``, as NNI does for tuner and trial."""
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before

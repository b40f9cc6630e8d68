"""Find every fault of an nnictl config at once, before anything starts."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from nni_blockswap.cli.trial_command import check_task, command_faults
from nni_blockswap.errors import BlockSwapError, CheckpointError, ConfigError, readable
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.machines import machine_entries
from nni_blockswap.files import expanded
from nni_blockswap.ranges import check_count

TUNER = "nni_blockswap.tuner.BlockSwapTuner"


@dataclass(frozen=True)
class Fault:
    """One sentence: the rule, the value that breaks it, what to do. A warning keeps nothing from running."""

    sentence: str
    fatal: bool = True

    def __str__(self) -> str:
        return readable(self.sentence if self.fatal else f"warning: {self.sentence}")


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
        found = [fault for check in CHECKS for fault in check(config)]
    return sorted(dict.fromkeys(found), key=lambda fault: not fault.fatal)


def _fields(config: Config) -> Iterator[Fault]:
    """NNI's own fields and types."""
    from nni.experiment.config import ExperimentConfig, LocalConfig, RemoteConfig, RemoteMachineConfig, utils
    from nni.experiment.config.algorithm import _AlgorithmConfig

    kinds = {"": (config.content, ExperimentConfig), "tuner.": (config.tuner, _AlgorithmConfig)}
    if config.platform in ("local", "remote"):
        kinds["trainingService."] = config.service, LocalConfig if config.platform == "local" else RemoteConfig
    for number, machine in enumerate(machine_entries(config.service)):
        kinds[f"trainingService.machineList[{number}]."] = machine, RemoteMachineConfig
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
        try:
            check_count(name, content.get(name, 1))
        except ConfigError as error:
            yield Fault(str(error))
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
    gpus = config.service.get("trialGpuNumber", content.get("trialGpuNumber"))
    is_alone = config.service.get("maxTrialNumberPerGpu", 1) == 1
    if gpus and (is_alone or not config.service.get("useActiveGpu")) and config.platform == "local":
        yield Fault(
            f"trialGpuNumber is {gpus}, which NNI cannot schedule on a machine with as many GPUs, nor where all are in "
            "use, and fills its memory trying; leave it out (trials use the GPU all the same), or add "
            "maxTrialNumberPerGpu: 2 and useActiveGpu: true to trainingService."
        )


def _tuner(config: Config) -> Iterator[Fault]:
    """The tuner's class and the names and types of its arguments."""
    from nni_blockswap.experiment.classargs import argument_faults

    name = config.tuner.get("className")
    if "tuner" in config.content and name != TUNER:
        yield Fault(f"tuner.className is {TUNER}, not {name!r}.")
    if name and "codeDirectory" not in config.tuner:
        yield Fault(
            "tuner.codeDirectory is missing; NNI wants it with every className: set it to '.', this project's folder."
        )
    elif not config.code_directory.is_dir():
        yield Fault(f"tuner.codeDirectory is a folder, and '{config.code_directory}' is none.")
    if "tuner" in config.content and not config.arguments:
        yield Fault("tuner.classArgs is missing; it gives space, data and budget at least.")
    if config.arguments:
        faults = argument_faults(config.arguments)
        yield from map(Fault, faults)
        if not faults:
            yield from _attempt(lambda: _settings(config))


def _settings(config: Config) -> None:
    """Raise BlockSwapError unless search and library can be set up as they are written."""
    from nni_blockswap.experiment.classargs import read_settings

    settings, _ = read_settings(config.arguments, config.search_space() or {}, config.code_directory)
    if isinstance(config.arguments.get("library"), dict):
        from nni_blockswap.training.schooling import LibraryPlan

        plan = LibraryPlan.read(config.arguments["library"], settings, config.code_directory)
        if plan.recipe is None:
            _check_teacher(str(plan.settings.teacher))
    elif settings.library is not None:
        from nni_blockswap.library.library import Library

        library = Library.load(settings.library)
        library.check(settings.space, settings.space_args, settings.data, settings.data_options)


def _taught(config: Config) -> Iterator[Fault]:
    """Candidates that a library is taught and that the search space keeps from being chosen."""
    from nni_blockswap.blocks.nni_format import from_nni, unlisted
    from nni_blockswap.experiment.classargs import argument_faults
    from nni_blockswap.spaces import cost_table, with_space

    if not isinstance(config.arguments.get("library"), dict) or argument_faults(config.arguments):
        return  # which others tell
    with contextlib.suppress(BlockSwapError):
        arguments = with_space(config.arguments)
        table = cost_table(arguments["space"], arguments.get("space_args"))
        if left_out := unlisted(table, from_nni(config.search_space())):
            yield Fault(
                f"the library teaches {len(left_out)} candidates that the search space file does not list, and that "
                f"are never chosen, as {left_out[-1]}; blockswap space --json writes one that lists all.",
                fatal=False,
            )


def _check_teacher(source: str) -> None:
    """Raise CheckpointError where a library's teacher cannot be had."""
    from nni_blockswap.training.sources import check_source, is_file

    check_source(source)
    if is_file(source) and not Path(source).exists():
        raise CheckpointError(f"there is no checkpoint '{source}' of a teacher for the library.")


def _search(config: Config) -> Iterator[Fault]:
    """Space, substitutes, budget, data and the machine: what the search would stumble over."""
    from nni_blockswap.cost.budget import known_resource
    from nni_blockswap.experiment.classargs import wrong_types
    from nni_blockswap.library.choosing import PROXIES
    from nni_blockswap.methods import method_named
    from nni_blockswap.scoring.machine import resolve_device, resolve_precision
    from nni_blockswap.scoring.proxies.combination import parts
    from nni_blockswap.spaces import with_space

    wrong = wrong_types(config.arguments)  # they have been reported; what is right is looked at all the same
    try:
        arguments = with_space({name: value for name, value in config.arguments.items() if name not in wrong})
    except BlockSwapError as error:
        yield Fault(str(error))
        return
    if "space" in arguments and "budget" in arguments:
        yield from _attempt(lambda: _affordable(arguments, config))
    for name in arguments.get("resources", ()):
        yield from _attempt(partial(known_resource, name, f"'{name}' is no resource"))
    if "space" in arguments and arguments.get("comparison") and not wrong:
        compared: list[Fault] = []
        yield from _attempt(lambda: compared.extend(_comparable(config)))
        yield from compared
    if "data" in arguments:
        yield from _attempt(lambda: _fitting(arguments, config))
    if arguments.get("proxy") not in PROXIES:
        yield from _attempt(lambda: parts(arguments.get("proxy", "fisher")))
    yield from _attempt(lambda: method_named(arguments.get("method", "uniform")))
    yield from _attempt(
        lambda: resolve_precision(arguments.get("precision", "auto"), resolve_device(arguments.get("device", "auto")))
    )


def _affordable(arguments: Mapping[str, Any], config: Config) -> None:
    """Raise BlockSwapError where no architecture is within the budget."""
    from nni_blockswap.blocks.nni_format import from_nni
    from nni_blockswap.cost.budget import Budget
    from nni_blockswap.methods.sampler import Sampler
    from nni_blockswap.spaces import cost_table

    budget = Budget.parse(arguments["budget"], arguments.get("tolerance"), arguments.get("at_most", False))
    budget = budget.capped() if arguments.get("library") else budget
    table = cost_table(arguments["space"], arguments.get("space_args", {}), budget.resources)
    Sampler(table.narrowed(from_nni(config.search_space() or {})), budget)


def _comparable(config: Config) -> Iterator[Fault]:
    from nni_blockswap.experiment.classargs import read_settings
    from nni_blockswap.studies.comparison import Comparison, faults

    alone = {**config.arguments, "students": 1}
    settings, _ = read_settings(alone, config.search_space() or {}, config.code_directory)
    yield from (Fault(str(error)) for error in faults(Comparison.read(config.arguments["comparison"]), settings))


def _fitting(arguments: Mapping[str, Any], config: Config) -> None:
    """Raise BlockSwapError where the data cannot be read, or no network of the space takes it."""
    from nni_blockswap.tasks import make_task

    root = arguments.get("data_root")
    root = None if root is None else str(config.code_directory / expanded(root))
    task = make_task(arguments["data"], root, **arguments.get("data_options", {}))
    check_task(task, arguments, arguments.get("batch_size", 128))


def _trial(config: Config) -> Iterator[Fault]:
    """The trial's command: its program is there, its options are understood, and it could train by them."""
    yield from map(Fault, command_faults(config))


def _machines(config: Config) -> Iterator[Fault]:
    """The machines of the remote training service: reached, and ready for the trials."""
    from nni_blockswap.experiment import readiness

    try:
        yield from map(Fault, readiness.faults(config))
        yield from (Fault(sentence, fatal=False) for sentence in readiness.warnings(config))
    except BlockSwapError as error:
        yield Fault(str(error))


CHECKS = (_fields, _limits, _tuner, _taught, _search, _trial, _machines)


def _attempt(action: Callable[[], object]) -> Iterator[Fault]:
    try:
        action()
    except BlockSwapError as error:
        yield Fault(str(error))


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

"""The command of an experiment's trials, read as the trial itself will read it."""

import argparse
import ast
import contextlib
import io
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nni_blockswap.errors import BlockSwapError, ConfigError, StateError
from nni_blockswap.experiment.config import Config
from nni_blockswap.files import expanded
from nni_blockswap.training.sources import is_file

SHELL = ("cd", "exec", "export", "set", "source", ".", "[", "test", "if", "for", "while")
"""Words of the shell that begin a command and are no program."""

OF_OURS = {"data", "data_root", "data_option"}
"""Options by which this project's trials, and what is made of them, are known: what others mean by theirs is theirs."""


def command_faults(config: Config) -> Iterator[str]:
    """What is wrong with trialCommand and trialCodeDirectory; a command that is missing is NNI's to say."""
    command, folder = config.content.get("trialCommand"), config.trial_directory
    if not isinstance(command, str):
        return
    if not folder.is_dir():
        yield f"trialCodeDirectory is a folder, and '{folder}' is none."
        return
    try:
        simple = _simple_commands(command)
    except ValueError as error:
        yield f"trialCommand cannot be split into words ({error}): {command!r}."
        return
    if not simple:
        yield "trialCommand is empty; write one, as in python -m trial.distill."
    for words in simple:
        if config.platform == "local":  # elsewhere it is on the machines
            yield from _program_faults(words, folder)
        yield from _module_faults(words, config)


def _simple_commands(command: str) -> list[list[str]]:
    """The words of each command in a line of the shell, without the variables that are set in front."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("<>&") and set(word) & set("<>"):  # as in 2> errors.txt
            if found[-1] and found[-1][-1].isdecimal():
                found[-1].pop()
            next(lexer, None)
        elif set(word) <= set("();<>|&"):
            found.append([])
        elif found[-1] or not word.partition("=")[0].isidentifier() or "=" not in word:
            found[-1].append(os.path.expanduser(word))  # as the shell does
    return [words for words in found if words]


def _program_faults(words: list[str], folder: Path) -> Iterator[str]:
    program = words[0]
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    there = shutil.which(program, path=search) or ("/" in program and (folder / program).is_file())
    if not there and program not in SHELL and not set(program) & set("$`*~"):
        yield f"trialCommand begins with '{program}', and there is no such program; correct it."


def _module_faults(words: list[str], config: Config) -> Iterator[str]:
    """Whether the Python module of a command is there, and what it says of its options."""
    folder = config.trial_directory
    script = next((number for number, word in enumerate(words) if word.endswith(".py")), None)
    if "-m" in words[:-1]:
        place = words.index("-m") + 1
        name = words[place]
    elif script is not None:
        place, path = script, folder / words[script]
        if not path.is_file():
            yield f"the trial's script '{words[script]}' is not in '{folder}'; correct the command or the directory."
            return
        name = ".".join(Path(os.path.relpath(path, folder)).with_suffix("").parts)
    else:
        return
    try:
        found = find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        if script is None:
            yield f"the trial's module '{name}' is not in '{folder}'; correct the command or the directory."
        return
    if _has_parser(found.origin) and not set("$`") & set(" ".join(words)):  # what the shell puts there nobody knows
        parser = _parser_of(name)
        if parser is not None:
            yield from _option_faults(import_module(name), parser, words[place + 1 :], config)


def _parser_of(name: str) -> argparse.ArgumentParser | None:
    """What reads a trial's options; None where somebody's own program does not say, or means something else by it."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = import_module(name).parser()
    except (Exception, SystemExit):
        return None
    return found if isinstance(found, argparse.ArgumentParser) else None


def _has_parser(source: str | None) -> bool:
    """Whether a program says how its options are read, and does nothing when it is imported, which others are not."""
    if source is None or not source.endswith(".py"):
        return False
    try:
        parsed = ast.parse(Path(source).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    is_guarded = any(isinstance(part, ast.If) and "__name__" in ast.dump(part.test) for part in parsed.body)
    return is_guarded and any(isinstance(part, ast.FunctionDef) and part.name == "parser" for part in parsed.body)


def _option_faults(trial: Any, parser: argparse.ArgumentParser, words: list[str], config: Config) -> Iterator[str]:
    """Let the trial read its own options and say whether it could train by them on its data."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            given = parser.parse_args(words)
    except SystemExit as error:
        if not error.code:
            yield "trialCommand: the trial would say how it is used, and train nothing; remove --help."
            return
        reason = said.getvalue().strip().rpartition("error: ")[2]
        yield f"trialCommand: {reason}; see {parser.prog} --help."
        return
    if not vars(given).keys() >= OF_OURS:
        return
    recipe = None
    yield from _from_its_folder(given, config)
    try:
        recipe = trial.check(given) if callable(getattr(trial, "check", None)) else None
    except BlockSwapError as error:
        yield str(error)
    if config.platform == "local":
        try:
            _check_start(given, config)
        except BlockSwapError as error:
            yield str(error)
    data = getattr(given, "data", None)
    if data is not None and data != config.arguments.get("data", data):
        yield f"the tuner searches on {config.arguments['data']} and the trial trains on {data}; set both alike."
    elif data is not None and (config.platform == "local" or not given.data_root):
        try:
            _check_data(given, recipe, config)
        except BlockSwapError as error:
            yield str(error)


def _from_its_folder(given: argparse.Namespace, config: Config) -> Iterator[str]:
    """Let paths be those that the trial sees from its folder, and tell of a teacher that is not there."""
    for name in ("teacher", "teacher_dir", "data_root"):
        value = getattr(given, name, None)
        if value is not None and (name != "teacher" or is_file(value)):
            path = config.trial_directory / value
            setattr(given, name, str(path))
            if name == "teacher" and config.platform == "local" and not path.exists() and not _is_made(path, config):
                yield f"there is no checkpoint '{path}'."
    from nni_blockswap.training.starting import LIBRARY, library_folder

    if folder := library_folder(getattr(given, "init", None)):
        given.init = f"{LIBRARY}={config.trial_directory / folder}"


def _check_start(given: argparse.Namespace, config: Config) -> None:
    """Raise BlockSwapError where a student starts from a library that is not there, or is of another space or data."""
    from nni_blockswap.experiment.classargs import wrong_types
    from nni_blockswap.key_values import key_values
    from nni_blockswap.library.library import Library
    from nni_blockswap.spaces import with_space
    from nni_blockswap.training.starting import check_data, library_folder

    folder = library_folder(getattr(given, "init", None))
    if not folder:  # a library without one is refused by the trial itself
        return
    path, of_tuner = Path(folder), _library_of(config)
    if path.resolve() == of_tuner:  # which is told elsewhere, or built first
        return
    arguments = {} if wrong_types(config.arguments) else with_space(config.arguments)
    try:
        library = Library.load(path)
        if "space" in arguments:
            library.check_space(arguments["space"], arguments.get("space_args", {}))
        check_data(library, given.data, key_values(given.data_option, "--data-option"))
    except BlockSwapError as error:
        unlike = "" if of_tuner is None else f" and the tuner has that in '{of_tuner}'"
        raise StateError(f"the trial starts from the library in '{path}'{unlike}: {error}") from error


def _library_of(config: Config) -> Path | None:
    """The folder of the library that the tuner chooses by."""
    library = config.arguments.get("library")
    folder = library.get("folder") if isinstance(library, dict) else library
    with contextlib.suppress(ConfigError):  # which others tell
        return (config.code_directory / expanded(folder)).resolve() if isinstance(folder, str) else None
    return None


def _is_made(path: Path, config: Config) -> bool:
    """Whether a checkpoint is that of the teacher which the tuner trains for its library."""
    from nni_blockswap.training.schooling import TEACHER

    library, folder = config.arguments.get("library"), _library_of(config)
    is_trained = isinstance(library, dict) and isinstance(library.get("teacher"), dict)
    return is_trained and folder is not None and path.resolve() == folder / TEACHER


def _check_data(given: argparse.Namespace, recipe: Any, config: Config) -> None:
    """Raise BlockSwapError where the trial cannot train a network of the search on its data."""
    from nni_blockswap.experiment.classargs import wrong_types
    from nni_blockswap.key_values import key_values
    from nni_blockswap.spaces import with_space
    from nni_blockswap.tasks import make_task
    from nni_blockswap.training.running import check_batches

    task = make_task(given.data, given.data_root, **key_values(given.data_option, "--data-option"))
    check_task(task, {} if wrong_types(config.arguments) else with_space(config.arguments), 1)
    if recipe is not None:
        check_batches(task, recipe)


def check_task(task: Any, arguments: Mapping[str, Any], batch_size: int) -> None:
    """Raise BlockSwapError unless there is a minibatch of ``task``, and networks of the classArgs' space are for it."""
    from nni_blockswap.scoring.scorer import check_fit

    images = task.minibatch(batch_size, seed=0)
    if "space" in arguments:
        check_fit(arguments["space"], arguments.get("space_args", {}), task, images)

"""A trial as a program: what it says, and one sentence for each way in which it fails."""

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import distributed

from nni_blockswap.errors import BlockSwapError, ConfigError, DataError, SpaceError, TrainingError, readable
from nni_blockswap.training.nni_link import is_first_process, leave_word, under_nni

FAILED = 2
"""Exit code after a sentence, argparse's or ours; a fault of the program has Python's own, 1."""

OWN_FAULTS = (ConfigError, SpaceError, TrainingError)
"""After which a student is given up: options that nobody can train by, a network that diverges. All else that fails,
such as a disk, a data set, or memory, may be in order the next time."""


def say(text: str) -> None:
    """A line for whoever watches: the terminal, or the trial's log under NNI."""
    if is_first_process():
        print(text, flush=True)


def in_terminal() -> bool:
    """Whether a progress bar has a place to move."""
    return not under_nni() and sys.stderr.isatty()


@contextmanager
def quietly() -> Iterator[None]:
    """Silence what is harmless and says nothing to the reader of a trial's log."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for harmless in (
            ".*does not have many workers.*",
            ".*exists and is not empty.*",
            ".*smaller than the logging interval.*",
            ".*LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message=harmless)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class Terminated(BaseException):
    """SIGTERM has come."""


def main(name: str, run: Callable[[], None]) -> None:
    """Run a trial; end with one sentence on stderr and a non-zero exit code where it fails or is stopped.

    Of several processes the first speaks; another one does so only of what it alone may have met.
    """
    try:
        with quietly(), _raised_on_term():
            run()
    except Terminated:
        _stopped(name, "SIGTERM", signal.SIGTERM)
    except KeyboardInterrupt:
        _stopped(name, "Ctrl-C", signal.SIGINT)
    except SystemExit as error:
        if error.code == FAILED:
            leave_word("the trial's command is wrong.", final=True)
        raise
    except (BlockSwapError, RuntimeError, OSError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if isinstance(error, OWN_FAULTS):
            leave_word(sentence, final=True)
        met_alone = isinstance(error, DataError | torch.OutOfMemoryError | OSError)
        _failed(readable(f"{name}: {sentence}") if is_first_process() or met_alone else "")


@contextmanager
def _raised_on_term() -> Iterator[None]:
    """Let SIGTERM raise ``Terminated``, once: what is half done is undone, what is locked is free."""

    def terminate(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(name: str, by: str, number: int) -> NoReturn:
    if number == signal.SIGINT:  # NNI's way to end a trial that somebody ends by hand
        leave_word(f"stopped by {by}.", final=False)
    if is_first_process():
        print(f"{name}: stopped by {by}; {_kept()}", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def _failed(said: str) -> NoReturn:
    if said:
        print(said, file=sys.stderr, flush=True)
    ended = SystemExit(said)  # whoever calls this as a function reads why
    ended.code = FAILED
    raise ended


def _kept() -> str:
    how = "nnictl resume" if under_nni() else "the same command"
    return f"what was written before is kept: {how} goes on after the last whole epoch."


def _sentence(error: Exception) -> str | None:
    """What to tell the user of ``error``; None where it is a fault of the program."""
    text = str(error).strip()
    if isinstance(error, BlockSwapError):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is too small; lower --batch-size ({text.partition('.')[0]})."
    if isinstance(error, OSError):
        return f"{text}; {_kept()}"
    if isinstance(error, distributed.DistError) or "gloo" in text:  # what gloo says of a lost peer has no type
        return "another process of this run has failed; what it said tells why."
    return None

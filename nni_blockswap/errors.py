"""Every error that a user can cause. Each message states the rule, the value that broke it and what to do next."""

import re
import reprlib


class BlockSwapError(Exception):
    """Root of all errors raised on purpose by this package.

    A process of a DataLoader's passes on its whole traceback as the sentence; what follows the error's name is kept.
    """

    def __init__(self, sentence: str = "") -> None:
        if sentence.startswith("Caught ") and "\nOriginal Traceback " in sentence:
            sentence = re.split(rf"^\S*\b{type(self).__name__}: ", sentence, flags=re.MULTILINE)[-1].rstrip()
        super().__init__(sentence)


class SpaceError(BlockSwapError):
    """A search space, block label or substitute does not exist or does not fit."""


class BudgetError(BlockSwapError):
    """A budget is malformed or out of the reach of the search space."""


class DataError(BlockSwapError):
    """A data set is unknown, missing or unusable."""


class TooFewError(DataError):
    """A training set holds fewer examples than were asked for."""


class CheckpointError(BlockSwapError):
    """A checkpoint is missing, corrupt or does not fit the network."""


class ConfigError(BlockSwapError):
    """A setting, on the command line or in an nnictl config, is missing or wrong."""


class StateError(BlockSwapError):
    """What an earlier run left on disk cannot be continued with the present settings."""


class ScoreError(BlockSwapError):
    """No candidate of a search has a usable score."""


class WorkerError(BlockSwapError):
    """A process beside the main one, which scored candidates or taught blocks, died."""


class TrainingError(BlockSwapError):
    """A training run diverged or could not go on."""


class MachineError(BlockSwapError):
    """A machine of NNI's remote training service cannot be reached, or does not do what it is asked."""


class ExportError(BlockSwapError):
    """A network cannot be written in the format that was asked for."""


def first_line(error: BaseException) -> str:
    """What somebody else's error says first, as part of a sentence of ours; its kind where it says nothing."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def shown(value: object) -> str:
    """A value in a sentence: in Python's spelling, of something large its beginning."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxdict = 12
    return short.repr(value)


def readable(sentence: str) -> str:
    """A sentence on one line, in which somebody's word of thousands of letters is cut short."""
    line = "\\n".join(sentence.splitlines())
    return re.sub(r"\S{500,}", lambda word: f"{word[0][:60]} ... {word[0][-20:]}", line)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out: Python's own error, or what torch raises, on a GPU and on a CPU."""
    said = ("out of memory", "not enough memory", "allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in said)

"""A trial as a program: what it says, and one sentence for each way in which it fails."""

import logging
import sys
import warnings
from collections.abc import Callable

import torch
from torch import distributed

from nni_blockswap.errors import BlockSwapError, DataError
from nni_blockswap.training.nni_link import is_first_process, under_nni


def say(text: str) -> None:
    """A line for whoever watches: the terminal, or the trial's log under NNI."""
    if is_first_process():
        print(text, flush=True)


def in_terminal() -> bool:
    """Whether a progress bar has a place to move."""
    return not under_nni() and sys.stderr.isatty()


def quiet() -> None:
    """Silence what is harmless and says nothing to the reader of a trial's log."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for harmless in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=harmless)


def main(name: str, run: Callable[[], None]) -> None:
    """Run a trial; end with one sentence on stderr and a non-zero exit code where it fails.

    Of several processes the first speaks; another one does so only of what it alone may have met.
    """
    quiet()
    try:
        run()
    except (BlockSwapError, RuntimeError, OSError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        met_alone = isinstance(error, DataError | torch.OutOfMemoryError | OSError)
        sys.exit(f"{name}: {sentence}" if is_first_process() or met_alone else 1)


def _sentence(error: Exception) -> str | None:
    """What to tell the user of ``error``; None where it is a fault of the program."""
    text = str(error).strip()
    if isinstance(error, BlockSwapError):
        # A process that reads images passes on its whole traceback; the last line is the sentence.
        return text.splitlines()[-1].rpartition("Error: ")[2]
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is too small; lower --batch-size ({text.partition('.')[0]})."
    if isinstance(error, OSError):
        return f"{text}; what was written before is kept: the same command goes on after the last whole epoch."
    if isinstance(error, distributed.DistError) or "gloo" in text:  # what gloo says of a lost peer has no type
        return "another process of this run has failed; what it said tells why."
    return None

"""Python processes that help this one, and end with it, however that comes about.

Work comes in on a helper's standard input and answers leave on its standard output, pickled. It ends where its input
does.
"""

import logging
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import torch

_log = logging.getLogger(__name__)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let this process compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def start_helper(module: str, count: int = 1) -> "subprocess.Popen[bytes]":
    """A process in which ``serve(answers)`` of ``module`` runs; ``answers`` is a file descriptor to write to.

    Args:
        count: of the threads that it computes on.
    """
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # Before anything is imported standard output becomes standard error: nothing printed may come between the answers.
    program = f"import os; answers = os.dup(1); os.dup2(2, 1); from {module} import serve; serve(answers)"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(count)},
        start_new_session=True,  # Ctrl-C is for this process
    )


def spelled_end(process: "subprocess.Popen[bytes]") -> str:
    """How a helper ended: ``was killed by signal 9``, ``ended with code 1``."""
    code = process.wait()
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def begin_helping(descriptor: int) -> tuple[IO[bytes], IO[bytes]]:
    """In a helper: where requests come in and answers leave, once it computes on the threads that it was given."""
    warnings.filterwarnings("ignore", message=".*is found to be not a nn.Module")  # NNI's, and harmless
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    return sys.stdin.buffer, os.fdopen(descriptor, "wb")


def say(stream: IO[bytes], message: Any) -> None:
    """Send one message, now."""
    pickle.dump(message, stream)
    stream.flush()


def heard(process: "subprocess.Popen[bytes]") -> Iterator[Any]:
    """What a helper says, until it says no more; one that cannot be understood is ended."""
    assert process.stdout is not None
    try:
        while True:
            yield pickle.load(process.stdout)
    except (EOFError, OSError, pickle.UnpicklingError):  # the last for a message that was cut short
        return
    except Exception as error:
        _log.warning("A process beside this one was not understood: %r", error)
        process.kill()

"""Runs a command in this process, and holds it to one rule: a valid run, or one sentence and exit code 2."""

import contextlib
import io
import re
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from nni_blockswap import trust
from nni_blockswap.cli import main as blockswap
from nni_blockswap.training.program import main as trial

PATIENCE, LONG = 60, 5
"""Seconds of computing after which a command hangs; and after which one that was told to do a lot is stopped by Ctrl-C.
A machine that is busy with other work does not make them pass."""

WAITING = 900
"""Seconds that a command may wait for something."""

MEMORY = 6 * 2**30
"""Bytes that a command may take beyond what there is: what asks for more is to say so, and leave the machine alone."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

LONGEST = 2000
"""Letters of a sentence that a person reads."""


class HangsError(BaseException):
    """Nothing may take so long."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def is_valid(self) -> bool:
        """Whether it did what it was told. AssertionError where it neither did nor said in a sentence why not."""
        assert "Traceback" not in self.err + self.out, self.err
        if self.code in (0, INTERRUPTED):
            return self.code == 0
        assert self.code == 2, (self.code, self.out, self.err)
        lines = [line for line in self.err.splitlines() if " candidates, " not in line]
        if lines and lines[0].startswith("usage: "):
            assert any(": error: " in line for line in lines), self.err
        else:
            assert lines, "it says nothing"
            assert all(line.partition(": ")[2] and len(line) < LONGEST for line in lines), self.err
        return False


def run_blockswap(*words: str) -> Ended:
    """``blockswap`` with these words."""
    return _ended(lambda: blockswap(list(words)), words)


def run_trial(module: Any, *words: str) -> Ended:
    """A trial's program with these words."""

    def run() -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module.__name__, *words])
            trial(module.__name__, module.run)
        return 0

    return _ended(run, words)


def _ended(command: Callable[[], int], words: Sequence[str]) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    is_much = any(re.search(r"\d{3}", word) for word in words if "/" not in word)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _apart(), limited(interrupt=is_much):
        try:
            code = command()
        except SystemExit as error:
            code = int(error.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Undo what a command leaves in its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "_always", [])
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(warnings, "showwarning", lambda message, *_, **__: sys.stderr.write(f"{message}\n"))
        try:
            yield
        finally:
            torch.set_num_threads(1)
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def limited(interrupt: bool = False) -> Iterator[None]:
    """Limit time and memory of what is done in it; where that is meant to take long, it is interrupted in time."""
    interrupts = [KeyboardInterrupt] if interrupt else []

    def hang(number: int, frame: object) -> NoReturn:
        if interrupts and number == signal.SIGPROF:
            signal.setitimer(signal.ITIMER_PROF, PATIENCE)
            raise interrupts.pop()
        raise HangsError(f"it has not ended after {PATIENCE} s of computing, or {WAITING} s")

    with open("/proc/self/statm") as stream:
        now = int(stream.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = [signal.signal(number, hang) for number in (signal.SIGPROF, signal.SIGALRM)]
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, LONG if interrupt else PATIENCE)
    signal.alarm(WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def examine(cases: Any, body: Callable[[Any], None], count: int) -> None:
    """Call ``body`` with ``count`` of ``cases``, always the same, each in an empty folder; the smallest failing one is
    shown."""
    quiet = settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )

    @quiet
    @given(cases)
    def each(case: Any) -> None:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            body(case)

    each()

"""Scores on several CPU cores: this process, and helpers beside it that it hands pieces of the work to.

A helper, see ``processes``, ends when this process ends, however that comes about. Every process computes on one
thread: a score is the same to the last bit whoever finds it.
"""

import os
import pickle
import queue
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from nni_blockswap.errors import WorkerError
from nni_blockswap.processes import begin_helping, heard, say, spelled_end, start_helper, threads
from nni_blockswap.scoring.engines.base import Measure
from nni_blockswap.scoring.proxies import Score

Piece = list[tuple[int, Mapping[str, str]]]
"""Neighbouring candidates with their positions."""

LONGEST_PIECE = 8


class Workers:
    """This process and its helpers; they live until they are closed, from one call to the next.

    Args:
        start: gives a helper what it measures with; it can be pickled.
        measure: what this process measures with.
        helpers: at most so many processes beside this one.
    """

    def __init__(self, start: Callable[[], Measure], measure: Measure, helpers: int) -> None:
        self._measure, self._helpers = measure, helpers
        self._team = _Team(start)
        self.close = weakref.finalize(self, self._team.close)  # also where nobody does

    def score(self, candidates: Sequence[Mapping[str, str]]) -> Iterator[tuple[int, Score]]:
        """Score ``candidates``, choices by label, in an order that keeps neighbours together.

        Yields:
            (position in ``candidates``, score), as they come.

        Raises:
            WorkerError: a helper died.
        """
        pieces = _pieces(candidates, self._helpers + 1)
        try:
            with threads(1):
                self._team.grow(min(self._helpers, len(pieces) - 1))
                self._team.hand_out(pieces)
                while pieces or self._team.busy:
                    for position, choices in pieces.popleft() if pieces else ():
                        yield position, self._measure(choices)
                        yield from self._team.results(pieces, wait=False)
                    yield from self._team.results(pieces, wait=not pieces)
        except BaseException:
            self.close()  # the helpers are at work that nobody waits for
            raise


def _pieces(candidates: Sequence[Mapping[str, str]], processes: int) -> "deque[Piece]":
    """``candidates`` in the order of their blocks, in runs that get shorter, so that all processes finish together."""
    left = sorted(enumerate(candidates), key=lambda one: list(one[1].values()))
    pieces: deque[Piece] = deque()
    while left:
        length = max(1, min(LONGEST_PIECE, len(left) // (2 * processes)))
        pieces.append(left[:length])
        del left[:length]
    return pieces


class _Team:
    """The helpers, and what they say."""

    def __init__(self, start: Callable[[], Measure]) -> None:
        self._start = start
        self._said: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._left: list[int] = []  # scores that each still owes
        self._ready: list[bool] = []

    def grow(self, size: int) -> None:
        """Start helpers until there are ``size``."""
        for index in range(len(self._processes), size):
            self._processes.append(start_helper(__name__))
            self._left.append(0)
            self._ready.append(False)
            threading.Thread(target=self._listen, args=(index,), daemon=True).start()

    @property
    def busy(self) -> bool:
        return any(self._left)

    def hand_out(self, pieces: "deque[Piece]") -> None:
        """Give a piece to each helper that is ready and has none."""
        for index, ready in enumerate(self._ready):
            if ready and pieces and not self._left[index]:
                self._left[index] = len(pieces[0])
                self._send(index, pieces.popleft())

    def results(self, pieces: "deque[Piece]", *, wait: bool) -> Iterator[tuple[int, Score]]:
        """The scores that have come in; helpers that are ready get the next piece."""
        while not self._said.empty() or (wait and self.busy):
            index, message = self._said.get()
            if message is None:
                raise WorkerError(_obituary(spelled_end(self._processes[index])))
            if message == _READY:
                self._ready[index] = True
            else:
                self._left[index] -= 1
                yield message
            self.hand_out(pieces)

    def close(self) -> None:
        """End the helpers, at work or not."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _send(self, index: int, message: Any) -> None:
        stream = self._processes[index].stdin
        with suppress(OSError):  # it died: its listener will say so
            say(stream, message)  # type: ignore[arg-type]

    def _listen(self, index: int) -> None:
        """In a thread: pass on what a helper says; None when it says no more."""
        self._send(index, self._start)  # here, as it takes until the helper has started to read
        for answer in heard(self._processes[index]):
            self._said.put((index, answer))
        self._said.put((index, None))


_READY = "ready"


def serve(descriptor: int) -> None:
    """What a helper does until its standard input ends; answers go to the file ``descriptor``."""
    requests, answers = begin_helping(descriptor)
    try:
        measure: Measure = pickle.load(requests)()
        say(answers, _READY)
        while True:
            for position, choices in pickle.load(requests):
                say(answers, (position, measure(choices)))
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):  # the last for a message that was cut short
        os._exit(0)  # nobody listens any more


def _obituary(end: str) -> str:
    return (
        f"a scoring process {end}; the scores found so far are kept: start the same search again, "
        "with fewer processes if memory ran out."
    )

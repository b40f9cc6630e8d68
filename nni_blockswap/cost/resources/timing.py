"""Times of functions side by side: in rounds, so that what disturbs the machine disturbs them all."""

import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from nni_blockswap.files import read_json, write_json

_log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

_WARM_UP = 3
_SHORTEST = 2e-3  # seconds: a time that the clock resolves
SELDOM = 10.0
"""Seconds between two lines on how far a measurement is."""


def interleaved(
    runs: Mapping[K, Callable[[], object]],
    rounds: int,
    device: torch.device,
    prepare: Callable[[K], object] = lambda name: None,
    done: Sequence[Sequence[float]] = (),
    after_round: Callable[[Sequence[Sequence[float]]], object] = lambda done: None,
) -> dict[K, list[float]]:
    """Seconds a call of each of ``runs``, a value a round; a GPU is waited for before the clock is read.

    Each is called three times first, and in a round as often as takes 2 ms.

    Args:
        prepare: called with its name before the clock starts.
        done: rounds that were made before, each with the seconds of all ``runs`` in their order.
        after_round: called with all rounds so far.
    """

    def seconds(name: K, calls: int) -> float:
        run = runs[name]
        prepare(name)
        _wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        _wait(device)
        return (time.perf_counter() - start) / calls

    made = [list(one) for one in done]
    if len(made) < rounds:
        calls = {name: math.ceil(_SHORTEST / max(_warm(name, seconds), 1e-9)) for name in runs}
    while len(made) < rounds:
        made.append([seconds(name, calls[name]) for name in runs])
        after_round(made)
    return {name: [one[place] for one in made] for place, name in enumerate(runs)}


def _warm(name: K, seconds: Callable[[K, int], float]) -> float:
    return min(seconds(name, 1) for _ in range(_WARM_UP))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Rounds:
    """The rounds of a measurement: on disk as they are made, and told of.

    Args:
        path: where they are kept until the table is whole.
        name: of what is measured.
        count: how many there are to be.
    """

    def __init__(self, path: Path, name: str, count: int) -> None:
        self.path, self._name, self._count = path, name, count
        self._told = self._begun = time.monotonic()
        self._before = 0

    def made(
        self, runs: Mapping[Any, Callable[[], object]], device: torch.device, prepare: Callable[[Any], object]
    ) -> dict[Any, list[float]]:
        """Seconds of each of ``runs`` in all rounds; those that a killed process made are not made again."""
        done = self._kept(len(runs))
        self._begun, self._before = time.monotonic(), len(done)
        return interleaved(runs, self._count, device, prepare, done, self._keep)

    def tell(self, what: str) -> None:
        """Log how far it is, unless that was done in the last ten seconds."""
        if time.monotonic() - self._told >= SELDOM:
            self._told = time.monotonic()
            _log.info("%s: %s", self._name, what)

    def _kept(self, runs: int) -> list[list[float]]:
        try:
            rounds = np.array(read_json(self.path), dtype=float)
        except (OSError, ValueError, TypeError):
            return []
        whole = rounds.ndim == 2 and rounds.shape[1] == runs and np.isfinite(rounds).all()
        kept: list[list[float]] = rounds.tolist() if whole else []
        return kept

    def _keep(self, done: Sequence[Sequence[float]]) -> None:
        write_json(self.path, done)
        pace = (time.monotonic() - self._begun) / (len(done) - self._before)
        self.tell(f"{len(done)} of {self._count} rounds, {pace * (self._count - len(done)):.0f} s left")

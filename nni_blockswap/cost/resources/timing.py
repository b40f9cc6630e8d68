"""Times of functions side by side: in rounds, so that what disturbs the machine disturbs them all."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

K = TypeVar("K", bound=Hashable)

_WARM_UP = 3
_SHORTEST = 2e-3  # seconds: a time that the clock resolves


def interleaved(
    runs: Mapping[K, Callable[[], object]],
    rounds: int,
    device: torch.device,
    prepare: Callable[[K], object] = lambda name: None,
) -> dict[K, list[float]]:
    """Seconds a call of each of ``runs``, a value a round; a GPU is waited for before the clock is read.

    Each is called three times first, and in a round as often as takes 2 ms. ``prepare`` is called with its name before
    the clock starts.
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

    calls = {name: math.ceil(_SHORTEST / max(_warm(name, seconds), 1e-9)) for name in runs}
    times: dict[K, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in runs:
            times[name].append(seconds(name, calls[name]))
    return times


def _warm(name: K, seconds: Callable[[K, int], float]) -> float:
    return min(seconds(name, 1) for _ in range(_WARM_UP))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

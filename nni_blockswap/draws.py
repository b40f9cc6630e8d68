"""Random numbers that are the same each time, whatever is drawn in between: of a pass over batches or a network."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from nni_blockswap.seeds import LARGEST


class Draws:
    """All generators that a pass may draw from: the global ones of torch, NumPy and ``random``, and a DataLoader's own.

    A loader's own are replaced by others while the pass draws, where it has some.

    Args:
        batches: what is passed over.
        seed: of the pass, from 0 below 2^63.
    """

    def __init__(self, batches: object, seed: int) -> None:
        self._torch = torch.Generator().manual_seed(seed).get_state()
        self._numpy: Any = np.random.RandomState(seed % (LARGEST + 1)).get_state()  # the global one's kind
        self._random = random.Random(seed).getstate()
        owners = [one for one in drawing(batches) if one.generator is not None]
        self._own = [(one, torch.Generator(one.generator.device).manual_seed(seed)) for one in owners]

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Draw from where this pass stands, and leave the generators of all others as they were."""
        before = [owner.generator for owner, _ in self._own]
        with undrawn():
            torch.set_rng_state(self._torch)
            np.random.set_state(self._numpy)  # noqa: NPY002
            random.setstate(self._random)
            for owner, generator in self._own:
                owner.generator = generator
            try:
                yield
            finally:
                self._torch, self._random = torch.get_rng_state(), random.getstate()
                self._numpy = np.random.get_state()  # noqa: NPY002
                for (owner, _), generator in zip(self._own, before, strict=True):
                    owner.generator = generator


@contextmanager
def drawn_alike(device: torch.device) -> Iterator[None]:
    """Let global generators begin at 0, and leave them as they were: torch's on the CPU and on ``device``, and others'.

    So dropout and its kind draw the same each time, whatever was drawn before.
    """
    gpus = [device] if device.type == "cuda" else []
    with undrawn(gpus):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  # a network may draw from there
        torch.default_generator.manual_seed(0)  # torch.manual_seed would set those of all GPUs, too
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(0)
        yield


@contextmanager
def undrawn(devices: Iterable[Any] = ()) -> Iterator[None]:
    """Leave global generators as they were: torch's on the CPU and the GPUs ``devices``, NumPy's, ``random``'s."""
    of_numpy, of_random = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_random)


def drawing(batches: object) -> list[Any]:
    """Of a DataLoader, what may have a generator of its own: itself and its samplers, some of them twice."""
    parts = (batches, *samplers(batches)) if isinstance(batches, DataLoader) else ()
    return [part for part in parts if hasattr(part, "generator")]


def samplers(batches: object) -> list[Any]:
    """Of a DataLoader, what says in which order images come; some of them twice."""
    if not isinstance(batches, DataLoader):
        return []
    return [batches.sampler, batches.batch_sampler, getattr(batches.batch_sampler, "sampler", None)]

"""The protocol of an engine: a way to the scores of many architectures of one super-network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.engines.feeding import feeding
from nni_blockswap.scoring.engines.links import Link, links
from nni_blockswap.scoring.proxies import Proxy, Score
from nni_blockswap.tasks import Batch, Task

Measure = Callable[[Mapping[str, str]], Score]
"""From an architecture, canonical choices by label, to its score."""


@dataclass(frozen=True)
class Work:
    """What is measured, on what, in what arithmetic.

    Attributes:
        draw: makes the super-network, its weights drawn, in training mode, on the device; can be pickled.
        task: where the loss comes from.
        proxy: what is measured.
        measured: minibatches, on the device; a score is the mean over them.
        training: minibatches to train on before.
        device, precision: see ``settings.ScoreSettings``, resolved.
        recompute: less memory, more time.
    """

    draw: Callable[[], BlockSpace]
    task: Task
    proxy: Proxy
    measured: Sequence[Batch]
    training: Sequence[Batch]
    device: torch.device
    precision: str
    recompute: bool

    @cached_property
    def network(self) -> BlockSpace:
        """A super-network of this process, to look at and to measure with."""
        return self.draw()

    @cached_property
    def chain(self) -> tuple[Link, ...]:
        """The links of ``network``; see there."""
        return links(self.network, self.task, self.measured[0])

    @cached_property
    def fed(self) -> tuple[int, ...]:
        """The positions in ``chain`` of the links that feed the head; none where it is no chain. See ``feeding``."""
        return feeding(self.network, self.task, self.measured[0], self.chain)


class Engine(Protocol):
    """A way to scores.

    In time: it is asked whether it suits; then it gives ``start``, which this process calls, and where the engine is
    ``parallel`` each helper process, too; what that returns measures one architecture after the other, neighbours
    with the same first blocks together.
    """

    name: str
    about: str
    """How it goes about it, in a few words for the user."""

    parallel: bool
    """Whether helper processes may call ``start``, too, on a CPU, and neighbours are to be measured together."""

    def suits(self, work: Work) -> bool:
        """Whether it gives the plain way's scores for this space, task, proxy, device and precision."""

    def start(self, work: Work) -> Callable[[], Measure]:
        """What starts it."""

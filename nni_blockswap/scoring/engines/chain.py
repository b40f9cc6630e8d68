"""Fisher potential of many candidates on one chain of blocks, fast. The plain way: ``scoring/engines/plain.py``.

Classifiers are mostly chains, images -> stem -> link_0 -> ... -> link_n -> head -> loss, in which a link, a block or
a part of the network with blocks inside, sees nothing but what the one before gives. Some of the links feed the head,
too: in a detector the last of each stage, from which the pyramid is made. Then

- the stem's output is the same for all candidates, and so is that of every link up to the first in which two of them
  differ: what a link gave is kept, with its graph, until a candidate comes that runs other substitutes there;
- the backward pass goes from the head to the links that feed it, and from link to link, adding where both meet; it
  ends at the probes of the first.

Nothing of the method changes: the same weights, minibatch, loss, probes and BN mode.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.engines.base import Measure, Work
from nni_blockswap.scoring.engines.feeding import added, entering, head_gradients
from nni_blockswap.scoring.engines.links import links, shared
from nni_blockswap.scoring.engines.sparse import prepare_head
from nni_blockswap.scoring.machine import autocast, keep_freed_memory
from nni_blockswap.scoring.proxies import Score, in_numbers, mean_score
from nni_blockswap.scoring.proxies.fisher import OfFisherInformation, fisher_information
from nni_blockswap.tasks import Batch, Task
from nni_blockswap.tasks.classification import Classification
from nni_blockswap.tasks.coco import Coco

Information = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""From activations and gradients of blocks to their Fisher information."""

LOSSES = (Classification.loss, Coco.loss)
"""Those that see nothing but a network's outputs, and that every process has; a user's own may be neither."""


class Chain:
    """``FisherChain`` on any device, as the plain layers are."""

    name = "chain"
    about = "block by block, what two candidates share once"
    parallel = True

    def suits(self, work: Work) -> bool:
        """Where there is no ``obstacle``."""
        return not self.obstacle(work)

    def obstacle(self, work: Work) -> str:
        """Why it is not Fisher information of a chain, by a common loss, at initialisation; or ""."""
        if not isinstance(work.proxy, OfFisherInformation):
            return f"'{work.proxy.name}' is measured, and the fast ways are those to Fisher information"
        if type(work.task).loss not in LOSSES:
            return "the loss is one's own"
        if work.training:
            return "scores are taken after training"
        if not work.fed:
            return "the blocks do not run one after the other, each on nothing but what the one before gave"
        return ""

    def start(self, work: Work) -> Callable[[], Measure]:
        task = without_data(work.task)
        proxy = cast(OfFisherInformation, work.proxy)
        return partial(start, work.draw, task, proxy, work.measured, work.device, work.precision, work.recompute)


CHAIN = Chain()


def without_data(task: Task) -> Task:
    """What gives the loss of ``task`` in another process: a user's loader stays here."""
    return cast(Task, Classification()) if isinstance(task, Classification) else task


def start(
    draw: Callable[[], BlockSpace],
    task: Task,
    proxy: OfFisherInformation,
    batches: Sequence[Batch],
    device: torch.device,
    precision: str,
    recompute: bool = False,
) -> Measure:
    """A function from choices to what ``proxy`` says, the mean over ``batches``."""
    network = draw()
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    if not isinstance(task, Classification):
        prepare_head(network)
    keep_freed_memory()
    with autocast(device, precision):
        chain = FisherChain(network, task, batches, recompute)
    return measuring(chain, proxy, len(batches), device, precision)


def measuring(
    chain: "Measuring", proxy: OfFisherInformation, minibatches: int, device: torch.device, precision: str
) -> Measure:
    """Mean of what ``proxy`` says of each minibatch, of the Fisher information that ``chain`` finds."""

    def score(choices: Mapping[str, str], index: int) -> Score:
        return in_numbers(proxy.score(chain.measure(choices, index).blocks, chain.channels), proxy.name)

    def measure(choices: Mapping[str, str]) -> Score:
        with autocast(device, precision):
            return mean_score([score(choices, index) for index in range(minibatches)])

    return measure


class Measuring(Protocol):
    """``FisherChain``, or what takes its place."""

    channels: list[int]

    def measure(self, choices: Mapping[str, str], index: int = 0) -> Score: ...


@dataclass(frozen=True)
class Step:
    """One link of the candidate at hand: substitutes, input, what passed the probes, output."""

    names: tuple[str, ...]
    x: Tensor
    activations: list[Tensor]
    out: Tensor


class FisherChain:
    """Measures candidates one after the other; those that share their first blocks should follow each other.

    Args:
        network: the super-network, in training mode; its weights are frozen.
        task: where the loss comes from.
        batches: the minibatches; blocks are shared while it stays the same.
        recompute: keep of a link only what goes in and what comes out, and run it again in the backward pass. Less
            memory, and the same score to the last bit.
        information: what computes equations (2) and (3).
    """

    def __init__(
        self,
        network: BlockSpace,
        task: Task,
        batches: Sequence[Batch],
        recompute: bool = False,
        information: Information = fisher_information,
    ) -> None:
        self._network = network.requires_grad_(False)
        self.channels = [block.site.out_channels for block in network.blocks()]
        self._links = links(network, task, batches[0])
        self._task = task
        self._recompute = recompute
        self._information = information
        self._batches = [channels_last(batch) for batch in batches]
        self._stems = [entering(network, task, batch, self._links[0]) for batch in self._batches]
        self._steps: list[Step] = []
        self._at = 0

    def measure(self, choices: Mapping[str, str], index: int = 0) -> Score:
        """Fisher potential of the architecture ``choices`` on the ``index``-th minibatch."""
        if index != self._at:
            self._steps, self._at = [], index
        self._forward([tuple(choices[block.label] for block in link.blocks) for link in self._links])
        outputs = [step.out for step in self._steps]
        gradients = head_gradients(self._network, self._task, self._batches[self._at], self._links, outputs)
        information, gradient = [], None
        for position in reversed(range(len(self._links))):
            at_probes, gradient = self._link_gradients(position, added(gradients[position], gradient))
            information.append(at_probes)
        blocks = tuple(torch.cat(information[::-1]).tolist())
        return Score(sum(blocks), blocks)

    def _forward(self, names: Sequence[tuple[str, ...]]) -> None:
        """Run the links from the first whose substitutes are others than last time."""
        kept = shared([step.names for step in self._steps], names)
        del self._steps[kept:]
        for link, wanted in zip(self._links[kept:], names[kept:], strict=True):
            for block, name in zip(link.blocks, wanted, strict=True):
                block.select(name)
            x = self._steps[-1].out.detach().requires_grad_() if self._steps else self._stems[self._at]
            activations, out = link.run(x)
            if self._recompute:
                activations, out = [], out.detach()
            self._steps.append(Step(wanted, x, activations, out))

    def _link_gradients(self, position: int, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the gradient at a link's output: the Fisher information (blocks,), and the gradient at its input."""
        step = self._steps[position]
        activations, out = self._links[position].run(step.x) if self._recompute else (step.activations, step.out)
        return backward(step.x if position else None, activations, out, gradient, self._information)


def backward(
    x: Tensor | None, activations: Sequence[Tensor], out: Tensor, gradient: Tensor, information: Information
) -> tuple[Tensor, Tensor | None]:
    """``information`` (blocks,) of a link that gave ``out``, and the gradient at ``x``, where there is one."""
    inputs = [*activations, x] if x is not None else activations  # nothing is wanted of what lies before the first
    gradients = torch.autograd.grad(out, inputs, gradient, retain_graph=True)
    at_probes = gradients[: len(activations)]
    before = gradients[-1] if x is not None else None
    return information([one.detach() for one in activations], at_probes), before


def channels_last(batch: Batch) -> Batch:
    """The batch with a classifier's images (N, C, H, W) in channels_last."""
    images, targets = batch
    return (images.contiguous(memory_format=torch.channels_last), targets) if isinstance(images, Tensor) else batch

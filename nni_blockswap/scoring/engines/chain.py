"""Fisher potential of many candidates on one chain of blocks, fast. The plain way is ``proxies/fisher.py``.

Classifiers are mostly chains, images -> stem -> block_00 -> ... -> block_nn -> head -> loss, in which a block sees
nothing but what the one before gives. Some of the blocks feed the head, too: in a detector the last of each stage, from
which the pyramid is made. Then

- the stem's output is the same for all candidates, and so is that of every block up to the first in which two of them
  differ: what a block gave is kept, with its graph, until a candidate comes that runs another substitute there;
- the backward pass goes from the head to the blocks that feed it, and from block to block, adding where both meet; it
  ends at the probe of the first.

Nothing of the method changes: the same weights, minibatch, loss, probes and BN mode.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.shells import Block, probed
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.engines.base import Measure, Work
from nni_blockswap.scoring.engines.sparse import prepare_head
from nni_blockswap.scoring.machine import autocast, keep_freed_memory
from nni_blockswap.scoring.proxies import Score, mean_score
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
        if not feeding(work.network, work.task, work.measured[0]):
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
        return proxy.score(chain.measure(choices, index).blocks, chain.channels)

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
    """One block of the candidate at hand: substitute, input, what passed the probe, output."""

    name: str
    x: Tensor
    activation: Tensor
    out: Tensor


class FisherChain:
    """Measures candidates one after the other; those that share their first blocks should follow each other.

    Args:
        network: the super-network, in training mode; its weights are frozen.
        task: where the loss comes from.
        batches: the minibatches; blocks are shared while it stays the same.
        recompute: keep of a block only what goes in and what comes out, and run it again in the backward pass. Less
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
        self._blocks = network.blocks()
        self.channels = [block.site.out_channels for block in self._blocks]
        self._task = task
        self._recompute = recompute
        self._information = information
        self._batches = [channels_last(batch) for batch in batches]
        self._stems = [entering(network, task, batch) for batch in self._batches]
        self._steps: list[Step] = []
        self._at = 0

    def measure(self, choices: Mapping[str, str], index: int = 0) -> Score:
        """Fisher potential of the architecture ``choices`` on the ``index``-th minibatch."""
        if index != self._at:
            self._steps, self._at = [], index
        self._forward([choices[block.label] for block in self._blocks])
        outputs = [step.out for step in self._steps]
        gradients = head_gradients(self._network, self._task, self._batches[self._at], outputs)
        information, gradient = [], None
        for position in reversed(range(len(self._blocks))):
            at_probe, gradient = self._block_gradients(position, added(gradients[position], gradient))
            information.append(at_probe)
        blocks = tuple(torch.cat(information[::-1]).tolist())
        return Score(sum(blocks), blocks)

    def _forward(self, names: Sequence[str]) -> None:
        """Run the blocks from the first whose substitute is another than last time."""
        same = [step.name == name for step, name in zip(self._steps, names, strict=False)]
        shared = same.index(False) if False in same else len(same)
        del self._steps[shared:]
        for block, name in zip(self._blocks[shared:], names[shared:], strict=True):
            block.select(name)
            x = self._steps[-1].out.detach().requires_grad_() if self._steps else self._stems[self._at]
            activation, out = run_block(block, x)
            self._steps.append(Step(name, x, *(t.detach() if self._recompute else t for t in (activation, out))))

    def _block_gradients(self, position: int, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the gradient at a block's output: its Fisher information (1,), and the gradient at its input."""
        step = self._steps[position]
        activation, out = run_block(self._blocks[position], step.x) if self._recompute else (step.activation, step.out)
        inputs = [activation, step.x] if position else [activation]  # nothing is wanted of what lies before the first
        at_probe, *before = torch.autograd.grad(out, inputs, gradient, retain_graph=True)
        return self._information([activation.detach()], [at_probe]), before[0] if before else None


def head_gradients(network: BlockSpace, task: Task, batch: Batch, outputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Gradients of the loss with respect to ``outputs``, what the blocks give, past the head alone; None of the others.

    Of a classifier's images one is enough, as only the stem sees them; those of a detector say how large they are.
    """
    images, targets = batch
    leaves = [out.detach().requires_grad_() for out in outputs]
    with _bypassed(network.blocks(), leaves):
        loss = task.loss(network, (images[:1], targets) if isinstance(images, Tensor) else batch)
    return torch.autograd.grad(loss, leaves, allow_unused=True)


def added(one: Tensor | None, other: Tensor | None) -> Tensor:
    """The sum of two gradients, None where nothing comes from a side: where both meet, or the only one."""
    if one is None or other is None:
        return cast(Tensor, other if one is None else one)
    return one + other


def channels_last(batch: Batch) -> Batch:
    """The batch with a classifier's images (N, C, H, W) in channels_last."""
    images, targets = batch
    return (images.contiguous(memory_format=torch.channels_last), targets) if isinstance(images, Tensor) else batch


def feeding(network: BlockSpace, task: Task, batch: Batch) -> tuple[int, ...]:
    """The positions of the blocks that feed the head, the last among them; none where the blocks are no chain.

    They are a chain if they run one after the other, each once, on nothing but what the one before gave, which nothing
    changes in place, and if the head sees of the images no more than what blocks give. Two images tell.
    """
    images, targets = (part[:2] for part in batch)
    sources = [one.detach().requires_grad_() for one in ([images] if isinstance(images, Tensor) else images)]
    leaves: list[Tensor] = []

    def cut(output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()

    with passing(network.blocks(), cut) as (inputs, outputs):
        loss = task.loss(network, (sources[0] if isinstance(images, Tensor) else sources, targets))
    linked = all(after is before for after, before in zip(inputs[1:], outputs, strict=False))
    changed = any(output._version for output in outputs)
    if len(inputs) != len(network.blocks()) or not linked or changed or not loss.requires_grad:
        return ()
    gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, [*sources, *leaves], allow_unused=True)
    fed = [place - len(sources) for place, gradient in enumerate(gradients) if gradient is not None]
    return tuple(fed) if fed and fed[0] >= 0 and fed[-1] == len(leaves) - 1 else ()


def entering(network: BlockSpace, task: Task, batch: Batch) -> Tensor:
    """What goes into the first block."""
    with torch.no_grad(), passing(network.blocks()) as (inputs, _):
        task.loss(network, batch)
    return inputs[0]


@contextmanager
def passing(
    blocks: Sequence[Block], through: Callable[[Tensor], Tensor] = lambda output: output
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Collect what goes into the blocks, and what comes out ``through`` a function, as they run."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs.append(arguments[0])
        outputs.append(through(output))
        return outputs[-1]

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


def run_block(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """What passes the probe, ready for gradients, and what the block gives."""
    with probed([block]) as activations:
        out: Tensor = block(x)
    return activations[0], out


@contextmanager
def _bypassed(blocks: Sequence[Block], outputs: Sequence[Tensor]) -> Iterator[None]:
    """Let every block give its one of ``outputs``, whatever comes in."""
    for block, output in zip(blocks, outputs, strict=True):
        vars(block)["forward"] = partial(_given, output)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def _given(output: Tensor, x: Tensor) -> Tensor:
    return output

"""Fisher potential of many candidates on one chain of blocks, fast. The plain way is ``proxies/fisher.py``.

Classifiers are mostly chains, images -> stem -> block_00 -> ... -> block_nn -> head -> loss, in which only the next
block sees what a block gives. Then

- the stem's output is the same for all candidates, and so is that of every block up to the first in which two of them
  differ: what a block gave is kept, with its graph, until a candidate comes that runs another substitute there;
- the backward pass goes from block to block and ends at the probe of the first.

Nothing of the method changes: the same weights, minibatch, loss, probes and BN mode.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.shells import Block, probed
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.engines.base import Measure, Work
from nni_blockswap.scoring.machine import autocast
from nni_blockswap.scoring.proxies import Score, mean_score
from nni_blockswap.scoring.proxies.fisher import FisherPotential, fisher_information
from nni_blockswap.tasks.classification import Classification, Labelled

Information = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""From activations and gradients of blocks to their Fisher information."""


class Chain:
    """``FisherChain`` on any device, as the plain layers are."""

    name = "chain"
    about = "block by block, what two candidates share once"
    parallel = True

    def suits(self, work: Work) -> bool:
        """Where there is no ``obstacle``."""
        return not self.obstacle(work)

    def obstacle(self, work: Work) -> str:
        """Why it is not Fisher potential of a chain that classifies, by the common loss, at initialisation; or ""."""
        if not isinstance(work.proxy, FisherPotential):
            return f"'{work.proxy.name}' is measured, and the fast ways are Fisher potential's"
        if not isinstance(work.task, Classification):
            return f"{work.task.name} is no task of classification"
        if type(work.task).loss is not Classification.loss:  # type: ignore[comparison-overlap]  # one of its own
            return "the loss is one's own"
        if work.training:
            return "scores are taken after training"
        if not is_chain(work.network, work.measured[0][0][:2]):
            return "the blocks do not run one after the other, each on nothing but what the one before gave"
        return ""

    def start(self, work: Work) -> Callable[[], Measure]:
        return partial(start, work.draw, work.measured, work.precision, work.recompute)


CHAIN = Chain()


def start(
    draw: Callable[[], BlockSpace], batches: Sequence[Labelled], precision: str, recompute: bool = False
) -> Measure:
    """A function from choices to Fisher potential, the mean over ``batches``."""
    device = batches[0][0].device
    network = draw()
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    with autocast(device, precision):
        chain = FisherChain(network, batches, recompute)
    return measuring(chain, batches, precision)


def measuring(chain: "Measuring", batches: Sequence[Labelled], precision: str) -> Measure:
    """Mean of what ``chain`` measures on each of ``batches``."""
    device = batches[0][0].device

    def measure(choices: Mapping[str, str]) -> Score:
        with autocast(device, precision):
            return mean_score([chain.measure(choices, index) for index in range(len(batches))])

    return measure


class Measuring(Protocol):
    """``FisherChain``, or what takes its place."""

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
        batches: images (N, C, H, W) and labels of each minibatch; blocks are shared while it stays the same.
        recompute: keep of a block only what goes in and what comes out, and run it again in the backward pass. Less
            memory, and the same score to the last bit.
        information: what computes equations (2) and (3).
    """

    def __init__(
        self,
        network: BlockSpace,
        batches: Sequence[Labelled],
        recompute: bool = False,
        information: Information = fisher_information,
    ) -> None:
        self._network = network.requires_grad_(False)
        self._blocks = network.blocks()
        self._recompute = recompute
        self._information = information
        self._batches = [(images.contiguous(memory_format=torch.channels_last), labels) for images, labels in batches]
        self._stems = [passing(network, images)[0][0] for images, _ in self._batches]
        self._steps: list[Step] = []
        self._at = 0

    def measure(self, choices: Mapping[str, str], index: int = 0) -> Score:
        """Fisher potential of the architecture ``choices`` on the ``index``-th minibatch."""
        if index != self._at:
            self._steps, self._at = [], index
        self._forward([choices[block.label] for block in self._blocks])
        gradient = head_gradient(self._network, self._steps[-1].out, self._batches[self._at])
        information = []
        for position in reversed(range(len(self._blocks))):
            at_probe, gradient = self._block_gradients(position, gradient)
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

    def _block_gradients(self, position: int, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradient at a block's output: its Fisher information (1,), and the gradient at its input."""
        step = self._steps[position]
        activation, out = run_block(self._blocks[position], step.x) if self._recompute else (step.activation, step.out)
        inputs = [activation, step.x] if position else [activation]  # nothing is wanted of what lies before the first
        at_probe, *before = torch.autograd.grad(out, inputs, gradient, retain_graph=True)
        return self._information([activation.detach()], [at_probe]), before[0] if before else gradient


def head_gradient(network: BlockSpace, out: Tensor, batch: Labelled) -> Tensor:
    """Gradient of the loss with respect to ``out``, what the last block gives; of the images one is enough."""
    out = out.detach().requires_grad_()
    images, labels = batch
    with _bypassed(network.blocks(), lambda x: out):  # so that the images play no part
        loss = Classification().loss(network, (images[:1], labels))
    (gradient,) = torch.autograd.grad(loss, out)
    return gradient


def is_chain(network: BlockSpace, images: Tensor) -> bool:
    """Whether the blocks run one after the other, each once, on nothing but what the one before gave, then the head."""
    inputs, outputs = passing(network, images)
    blocks = network.blocks()
    if len(inputs) != len(blocks) or any(
        after is not before for after, before in zip(inputs[1:], outputs, strict=False)
    ):
        return False
    cut = blocks[-1].register_forward_hook(lambda module, arguments, output: output.detach())
    images = images.detach().requires_grad_()
    try:
        logits = network(images)
    finally:
        cut.remove()
    if not logits.requires_grad:
        return True
    (past_the_blocks,) = torch.autograd.grad(logits.sum(), images, allow_unused=True)
    return past_the_blocks is None


def passing(network: BlockSpace, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into the blocks and what comes out, as they run."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(arguments[0])
        outputs.append(output)

    handles = [block.register_forward_hook(keep) for block in network.blocks()]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, outputs


def run_block(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """What passes the probe, ready for gradients, and what the block gives."""
    with probed([block]) as activations:
        out: Tensor = block(x)
    return activations[0], out


@contextmanager
def _bypassed(blocks: Sequence[Block], forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let every block do ``forward`` instead of its own."""
    for block in blocks:
        vars(block)["forward"] = forward
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]

"""Links of a chain: parts of a network that run one after the other, each on nothing but what the one before gave.

They are as small as the network allows: the blocks themselves in a space of ours, the bottlenecks of a ResNet, the
convolutions of a VGG with what follows each.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.shells import Block, probed
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.engines.buffers import telling_buffers
from nni_blockswap.tasks import Batch, Task


@dataclass(frozen=True)
class Link:
    """Modules in a row; the first alone holds blocks."""

    modules: tuple[nn.Module, ...]
    blocks: tuple[Block, ...]

    def run(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """What passes the blocks' probes, ready for gradients, and what comes out."""
        with probed(self.blocks) as activations:
            for module in self.modules:
                x = module(x)
        return activations, x


@dataclass
class _Call:
    """A module that ran, and what ran inside it."""

    module: nn.Module
    x: Tensor | None
    """Its input; None if that is not exactly one tensor."""
    out: Any = None
    inner: list["_Call"] = field(default_factory=list)

    def blocks(self) -> list[Block]:
        """Those that ran in it, in order."""
        return (
            [self.module] if isinstance(self.module, Block) else [one for call in self.inner for one in call.blocks()]
        )


def _modules(calls: Sequence[_Call]) -> Iterator[nn.Module]:
    for call in calls:
        yield call.module
        yield from _modules(call.inner)


def links(network: BlockSpace, task: Task, batch: Batch) -> tuple[Link, ...]:
    """The links of ``network``, from its first block to its last; none where there are not two of them."""
    whole = _watched(network, task, few(batch))
    if whole.blocks() != list(network.blocks()):
        return ()
    found = list[Link]()
    for call in _trunk(whole.inner):
        if blocks := tuple(call.blocks()):
            found.append(Link((call.module,), blocks))
        elif found:  # what a first part runs before its block belongs to the stem
            found[-1] = Link((*found[-1].modules, call.module), found[-1].blocks)
    runs, runs_here = Counter(_modules(whole.inner)), Counter(module for link in found for module in link.modules)
    elsewhere = any(runs[module] != times for module, times in runs_here.items())  # one ReLU for all, say
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in runs_here)  # they would run twice
    return tuple(found) if len(found) > 1 and not elsewhere and not hooked else ()


def _watched(network: BlockSpace, task: Task, batch: Batch) -> _Call:
    """``network``, and what runs in it, but nothing inside blocks; it keeps nothing of the pass."""
    buffers = telling_buffers(network)
    whole = _Call(network, None)
    running = [whole]

    def enter(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        alone = len(arguments) == 1 and not named and isinstance(arguments[0], Tensor)
        running.append(_Call(module, arguments[0] if alone else None))
        running[-2].inner.append(running[-1])

    def leave(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        running.pop().out = output

    inside = {part for block in network.blocks() for part in block.modules()} - set(network.blocks())
    handles = []
    for module in set(network.modules()) - inside - {network}:
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        with torch.no_grad():
            task.loss(network, batch)
    finally:
        for handle in handles:
            handle.remove()
        for buffer in buffers:
            buffer.put_back()
    return whole


def _trunk(calls: Sequence[_Call]) -> list[_Call]:
    """A row of calls, as short ones as there are, that holds all blocks; none where they are in no row."""
    places = [place for place, call in enumerate(calls) if call.blocks()]
    if len(places) == 1 and not isinstance(calls[places[0]].module, Block):
        return _trunk(calls[places[0]].inner)
    row = calls[places[0] : places[-1] + 1]
    return [part for call in row for part in _parts(call)] if _are_linked(row) else []


def _parts(call: _Call) -> list[_Call]:
    """The row of calls that ``call`` is, or itself."""
    inner = call.inner
    if len(call.blocks()) < 2 or not _are_linked(inner) or inner[0].x is not call.x or inner[-1].out is not call.out:
        return [call]
    return [part for one in inner for part in _parts(one)]


def _are_linked(row: Sequence[_Call]) -> bool:
    return all(call.x is not None for call in row) and all(one.out is other.x for one, other in pairwise(row))


def shared(before: Sequence[tuple[str, ...]], wanted: Sequence[tuple[str, ...]]) -> int:
    """How many links, from the first on, are to run the substitutes that they ran before.

    Example:
        >>> shared([("S",), ("B(2)",), ("S",)], [("S",), ("S",), ("S",)])
        1
    """
    same = [one == other for one, other in zip(before, wanted, strict=False)]
    return same.index(False) if False in same else len(same)


def few(batch: Batch) -> Batch:
    """Two images of ``batch``: enough to see how a network runs."""
    images, targets = batch
    return images[:2], targets[:2]


@contextmanager
def standing_in(chain: Sequence[Link], functions: Sequence[Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Let each link be one of ``functions``, in the place of its first module; the others pass on what they get."""
    before = {module: vars(module).get("forward") for link in chain for module in link.modules}
    for link, function in zip(chain, functions, strict=True):
        for module in link.modules:
            vars(module)["forward"] = function if module is link.modules[0] else _passed_on
    try:
        yield
    finally:
        for module, forward in before.items():
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward


def _passed_on(x: Tensor) -> Tensor:
    return x

"""Attention points: where the activations of a teacher and its student are compared.

Found by running a network once. What its modules give, seen from outside in, is a path of maps (N, C, H, W); a stage
ends where the resolution falls, by a third of the positions at least (convolutions without padding take a few), and its
last map is a point. A module counts as a whole unless its inside has two such ends or more: so a ResNet's stages are
found in whatever it is wrapped in, and not the shortcuts within its blocks. Maps that are larger than one before, as in
a decoder, are passed over.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.capture import captured
from nni_blockswap.blocks.flow import under
from nni_blockswap.errors import ConfigError

Size = tuple[int, int]

FALL = 2 / 3
"""Share of its positions that a map has left, at most, where a stage ends."""


@dataclass
class _Call:
    """A module that ran: its path, the height and width of its map (None where it gave none), what it ran itself."""

    path: str
    size: Size | None = None
    inner: list["_Call"] = field(default_factory=list)


def attention_points(network: nn.Module, example: Tensor, since: str | None = None) -> tuple[str, ...]:
    """The paths of the modules that end a stage of ``network``, in forward order.

    The last map of all is one of them, as the stage that it ends does not go on. Maps of a single position say nothing
    of where a network looks, and are none; nor are modules that run more than once.

    Args:
        example: a batch of what the network takes; one image is enough. The network is left as it was.
        since: path of the first module that is swapped: what ended before it, such as the stem, is no stage to imitate.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.Flatten())
        >>> attention_points(net, torch.zeros(1, 1, 32, 32))
        ('1', '3')
    """
    ran = _observed(network, example)
    ends = _ends(_path(ran))
    if since is None:
        return tuple(ends)
    begun = [call.path for call in _flat(ran)]
    before = set(begun[: begun.index(since)])  # by now these have ended, but for those that hold it
    return tuple(point for point in ends if point not in before or under(since, point))


def shared_points(
    student: nn.Module, teacher: nn.Module, example: Tensor, among: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The teacher's attention points whose modules the student has, too, with maps of the same height and width.

    Args:
        among: points that are known already, such as those of the space of both.

    Raises:
        ConfigError: there is none.
    """
    ran = _observed(teacher, example)
    own = {call.path: call.size for call in _flat(_observed(student, example))}
    sizes = {call.path: call.size for call in _flat(ran)}
    known = _ends(_path(ran)) if among is None else [point for point in among if sizes.get(point)]
    found = tuple(point for point in known if own.get(point) == sizes[point])
    if not found:
        raise ConfigError(
            "student and teacher have no module of the same name that ends a stage in both; name some as attention "
            "points, or set beta and features to 0."
        )
    return found


def equal_points(student: nn.Module, teacher: nn.Module, points: Sequence[str], example: Tensor) -> tuple[str, ...]:
    """Those of ``points`` at which the activations of both have one shape, so that they can be matched.

    Raises:
        ConfigError: there is none.
        SpaceError: one of the networks has no such module.
    """
    shapes = []
    for network in (student, teacher):
        with captured(network, points) as seen, undisturbed(network):
            network(moved(example, network))
        given: dict[str, Any] = {**seen}  # where something ran, and whatever that gives
        ran = {point: one for point, one in given.items() if isinstance(one, Tensor) and one.numel()}
        shapes.append({point: tuple(activation.shape) for point, activation in ran.items()})
    found = tuple(point for point in points if point in shapes[0] and shapes[0][point] == shapes[1].get(point))
    if not found:
        raise ConfigError(
            f"features are matched where student and teacher have activations of one shape, and none of "
            f"{', '.join(points)} is such a place; set features to 0."
        )
    return found


def _observed(network: nn.Module, example: Tensor) -> _Call:
    """Which modules ran, within which others."""
    root = _Call("")
    running = [root]

    def enter(path: str) -> Any:
        def hook(module: nn.Module, inputs: object) -> None:
            call = _Call(path)
            running[-1].inner.append(call)
            running.append(call)

        return hook

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            running[-1].size = (output.shape[2], output.shape[3])
        running.pop()

    handles = []
    for path, module in network.named_modules():
        if path:
            handles += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        with undisturbed(network):
            network(moved(example, network))
    finally:
        for handle in handles:
            handle.remove()
    return root


def _path(call: _Call) -> list[_Call]:
    """The maps that the outermost modules give, in order; those of wrappers in their place."""
    found = []
    for one in call.inner:
        inside = _path(one)
        if one.size is None or len(_ends(inside)) > 2:
            found += inside
        if one.size is not None:
            found.append(one)
    return found


def _ends(path: Sequence[_Call]) -> list[str]:
    """The last map before each fall of the resolution, and the last of all."""
    stages: list[list[str]] = []
    before = math.inf
    often = [call.path for call in path]
    for call in path:
        positions = math.prod(call.size or (0, 0))
        if not 1 < positions <= before:
            continue
        if positions <= FALL * before:
            stages.append([])
        before = positions
        if often.count(call.path) == 1:
            stages[-1].append(call.path)
    return [stage[-1] for stage in stages if stage]


def _flat(call: _Call) -> Iterator[_Call]:
    for one in call.inner:
        yield one
        yield from _flat(one)


def moved(example: Tensor, network: nn.Module) -> Tensor:
    """The example where the network's weights are."""
    first = next(network.parameters(), None)
    return example if first is None else example.to(first.device)


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode

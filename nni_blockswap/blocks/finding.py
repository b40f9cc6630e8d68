"""Where a network can be swapped: found by its structure, in one forward pass on a copy, whatever its classes are."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nni_blockswap.blocks.chains import Chains
from nni_blockswap.blocks.conditions import Patterns, obstacle_alone, obstacles
from nni_blockswap.blocks.flow import Flow, convolutions, under, watch
from nni_blockswap.blocks.found import Findings, Found, Kept, reasons
from nni_blockswap.errors import SpaceError


def find(model: nn.Module, example_input: Any, include: Patterns = None, exclude: Patterns = None) -> Findings:
    """Sites of a network and the convolutions that stay, both in forward order. The network is not changed.

    The first that fits is taken:

    1. ``branch``: two k x k convolutions, at most normalisation, activation and dropout between them, whose result is
       added to something, as in a residual block of the paper;
    2. ``inverted``: 1x1 expansion, depthwise k x k, (squeeze and excitation,) 1x1 projection in a block of their own;
    3. ``conv``: any other k x k convolution with k >= 3 and groups = 1 that is not the first of the network.

    Args:
        model: a network in any mode, on any device.
        example_input: what its forward takes: a tensor, a list of images, or a tuple of positional arguments.
        include: patterns over module paths; nothing else is swapped.
        exclude: patterns over module paths; these stay.

    Raises:
        SpaceError: no site, a pattern that matches nothing, weights that are not finite, or a forward pass that fails.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2, padding=2))
        >>> [(site.path, site.kind, site.out_shape) for site in find(block, torch.zeros(1, 3, 10, 10)).sites]
        [('2', 'conv', (16, 4, 4))]
    """
    _check(model)
    flow = _forward(model, example_input)
    against = obstacles(model, flow, include, exclude)
    sites = Chains(model, flow, against).sites()
    kept = _kept(model, flow, sites, against)
    if not sites:
        raise SpaceError(f"no convolution of this network can be swapped. {'; '.join(reasons(kept))}.")
    return Findings(tuple(sites), tuple(kept))


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise SpaceError(f"a network is an nn.Module; this is a {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise SpaceError("a ScriptModule cannot be changed; give the network that it was compiled from.")
    if not convolutions(model):
        raise SpaceError(f"{type(model).__name__} has no convolution, so that there is nothing to swap.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not nn.parameter.is_lazy(tensor) and not tensor.is_meta and not bool(tensor.isfinite().all()):
            raise SpaceError(f"'{name}' holds numbers that are not finite; give a network with sound weights.")


def _forward(model: nn.Module, example_input: Any) -> Flow:
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    try:
        network, arguments = copy.deepcopy((model, arguments))
    except Exception as error:
        raise SpaceError(f"{type(model).__name__} cannot be copied: {_first_line(error)}") from error
    try:
        return watch(network.eval(), arguments)
    except Exception as error:
        hint = "; give all that forward takes, as a tuple" if isinstance(error, TypeError) else ""
        raise SpaceError(
            f"{type(model).__name__} does not run on the example input: {_first_line(error)}{hint}."
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _kept(model: nn.Module, flow: Flow, sites: Sequence[Found], against: Mapping[str, str]) -> list[Kept]:
    """The convolutions outside all sites, those that the forward pass reached in its order and first."""
    found = convolutions(model)
    alone = {path: obstacle_alone(conv) for path, conv in found.items() if isinstance(conv, nn.Conv2d)}
    order = dict.fromkeys((*(step.path for step in flow.steps if step.path in found), *found))
    swapped = [part for site in sites for part in site.parts]
    outside = [path for path in order if not any(under(path, part) for part in swapped)]
    return [Kept(path, reason) for path in outside if (reason := against.get(path) or alone.get(path))]

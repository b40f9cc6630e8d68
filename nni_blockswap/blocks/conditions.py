"""Which convolutions can be swapped, and in one line why another cannot."""

import difflib
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from nni_blockswap.blocks.flow import Call, Flow, convolutions, under
from nni_blockswap.errors import SpaceError

Patterns = str | Sequence[str] | None
"""Patterns over module paths, ``"layer4.*"``; a module that matches stands for all inside it."""

SMALLEST = 3
"""Smaller kernels than 3x3 are not swapped."""


def obstacles(network: nn.Module, flow: Flow, include: Patterns, exclude: Patterns) -> dict[str, str]:
    """Why a convolution can be part of no site, by path; those that can are left out.

    Args:
        network: the network as the user gave it.
        flow: a forward pass of it.
        include: what alone is to be swapped; None is everything.
        exclude: what is not to be swapped.

    Raises:
        SpaceError: a pattern matches no module.
    """
    wanted, unwanted = _matches(network, include), _matches(network, exclude)
    first_calls = {call.path: call for call in reversed(flow.steps) if call.function is None}
    found = convolutions(network)
    stem = next((call.path for call in flow.steps if call.function is None and call.path in found), None)
    partners = partners_in(network)
    reasons = {}
    for path, conv in found.items():
        by_user = [pattern for place, pattern in unwanted.items() if under(path, place)]
        if by_user:
            reason: str | None = f"excluded by '{by_user[0]}'"
        elif include is not None and not any(under(path, place) for place in wanted):
            reason = "not included"
        elif path not in first_calls:
            reason = "not reached by the forward pass"
        elif flow.times[path] > 1:
            reason = f"used {flow.times[path]} times in one forward pass"
        elif path == stem:
            reason = "the stem"
        elif path in partners:
            reason = f"its weights are shared with '{partners[path]}'"
        else:
            reason = _of_its_kind(conv) or _of_its_call(conv, first_calls[path])
        if reason:
            reasons[path] = reason
    return reasons


def obstacle_alone(conv: nn.Conv2d) -> str | None:
    """Why a convolution cannot be a site of its own; None if it can."""
    if conv.groups > 1:
        return "depthwise: groups = channels" if conv.groups == conv.in_channels else "grouped already"
    height, width = conv.kernel_size
    if min(height, width) < SMALLEST:
        return f"{height}x{width} convolution"
    return None


def keeps_size(conv: nn.Conv2d) -> bool:
    """Whether the output is as large as the input, but for the stride: 2 padding = dilation (k - 1)."""
    if isinstance(conv.padding, str):
        return conv.padding == "same"
    sizes = zip(conv.padding, conv.dilation, conv.kernel_size, strict=True)
    return all(2 * padding == dilation * (kernel - 1) for padding, dilation, kernel in sizes)


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether it is a 1x1 convolution of all channels that leaves the size."""
    return conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether it takes each channel by itself, with a kernel of 3x3 or more."""
    return conv.groups == conv.in_channels == conv.out_channels and min(conv.kernel_size) >= SMALLEST


def _of_its_kind(conv: nn.Module) -> str | None:
    if not isinstance(getattr(conv, "weight", None), Tensor) or hasattr(conv, "weight_fake_quant"):
        return "quantised"
    if getattr(conv, "transposed", False):
        return "transposed"
    if not isinstance(conv, nn.Conv2d):
        return f"a {type(conv).__name__}, not a Conv2d"
    if "weight" not in dict(conv.named_parameters(recurse=False)):
        return "its weight is computed from other parameters"
    sizes = {name: getattr(conv, name) for name in ("stride", "padding", "dilation")}
    fine = {"stride": (tuple, list)}  # the others are a site's own
    unfit = [name for name, size in sizes.items() if not isinstance(size, fine.get(name, (tuple, str)))]
    return f"its {unfit[0]} is {sizes[unfit[0]]}, no tuple" if unfit else None  # as somebody sets it later


def _of_its_call(conv: nn.Module, call: Call) -> str | None:
    if not isinstance(conv, nn.Conv2d) or not call.simple or call.output is None or len(call.in_shape) != 4:
        return "does not take one batch of images and give one"
    padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
    sizes = zip(call.in_shape[2:], padding, conv.dilation, conv.kernel_size, conv.stride, strict=True)
    expected = tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in sizes)
    if conv.padding != "same" and call.out_shape[2:] != expected:
        return "pads by rules of its own"
    return None


def partners_in(network: nn.Module) -> dict[str, str]:
    """Modules that share a parameter with another one, and the path of that one."""
    owners: defaultdict[int, list[str]] = defaultdict(list)
    for path, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].append(path)
    shared = [paths for paths in owners.values() if len(paths) > 1]
    return {path: next(other for other in paths if other != path) for paths in shared for path in paths}


def _matches(network: nn.Module, patterns: Patterns) -> dict[str, str]:
    """Paths of the modules that patterns match, and which pattern."""
    paths = [path for path, _ in network.named_modules() if path]
    matches: dict[str, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        found = {path: pattern for path in paths if fnmatchcase(path, pattern)}
        if not found:
            near = difflib.get_close_matches(pattern, paths, cutoff=0.5) or paths[:3]
            raise SpaceError(f"'{pattern}' matches no module of the network; near it are {', '.join(near)}.")
        matches |= found
    return matches

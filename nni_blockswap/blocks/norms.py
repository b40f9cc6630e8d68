"""More normalisations and activations of a network's own kind, for any number of channels."""

import copy
import math
from collections.abc import Callable, Iterable
from itertools import takewhile

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.flow import Call, Flow, convolutions, module_of, under
from nni_blockswap.blocks.found import FoundSite, is_function
from nni_blockswap.networks import copied

FRESH = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
"""What torch's normalisations hold when they are new."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises (N, C, H, W) with numbers a channel.

    These are torch.nn's classes, and any module that itself holds two or more tensors, each of one number a channel.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return False  # nobody can make one of another width
    if type(module).forward is nn.LayerNorm.forward:
        return False  # the last dimension is the width
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)):
        return True
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return len(tensors) > 1 and {tensor.dim() for tensor in tensors} == {1} and len({len(t) for t in tensors}) == 1


def norm_near(network: nn.Module, flow: Flow, begin: int, end: int) -> str | None:
    """Path of the normalisation that belongs to the convolutions at steps ``begin`` to ``end``; None without one."""
    norms = {path: module for path, module in network.named_modules() if is_norm(module)}
    steps = [step for step in _neighbours(network, flow, begin, end) if step.function is None]
    near = ((path, norm) for step in steps for path, norm in norms.items() if under(path, step.path))
    return next((path for path, norm in near if _takes_maps(norm)), None)


def _takes_maps(norm: nn.Module) -> bool:
    """Whether one like it runs on (N, C, H, W), as a BatchNorm1d or what scales the last dimension does not."""
    tensors = [one for one in (*norm.parameters(recurse=False), *norm.buffers(recurse=False)) if one.dim()]
    known = [getattr(norm, name, None) for name in ("num_features", "num_channels")]
    numbers = [size for size in known if isinstance(size, int)]  # in a class of one's own they may be anything
    channels = 2 * max([1, *numbers, *map(len, tensors)])  # even, and the width below is not
    x = torch.zeros(1, channels, 2, 3, device=tensors[0].device if tensors else None)
    try:
        with torch.no_grad():
            normalised: Tensor = resized(copied(norm), channels).eval()(x)
    except Exception:  # it is anybody's
        return False
    return normalised.shape == x.shape


def activation_near(network: nn.Module, flow: Flow, begin: int, end: int, norm: str | None) -> str | None:
    """As ``FoundSite.activation``: the nearest one, or else the one that ran last before, or else a ReLU."""
    at = dict(reversed(flow.activations))  # the first of each step
    neighbours = [step.begin for step in _neighbours(network, flow, begin, end)]
    near = [at[number] for number in (*neighbours, *range(begin, -1, -1)) if number in at]
    activation = near[0] if near else "ReLU()"
    return None if norm is not None and under(activation, norm) else activation


def _neighbours(network: nn.Module, flow: Flow, begin: int, end: int) -> list[Call]:
    """Steps between the convolutions, then those after them, then those before them, up to other convolutions."""
    others = convolutions(network)

    def until_a_convolution(steps: Iterable[Call]) -> Iterable[Call]:
        return takewhile(lambda step: step.function is not None or step.path not in others, steps)

    before, after = flow.steps[:begin], flow.steps[end + 1 :]
    return [*flow.steps[begin + 1 : end], *until_a_convolution(after), *until_a_convolution(reversed(before))]


def norm_like(network: nn.Module, site: FoundSite) -> Callable[[int], nn.Module] | None:
    """Makes normalisations like the site's for a number of channels; None where none is near it.

    Settings are kept: eps, momentum, frozen statistics, an activation inside, channels a group where these divide.
    Weights and statistics are fresh; those of other names than torch's, such as a class of one's own has, are the
    original's mean in every channel, as nobody says which of them is a scale and which a shift.

    Args:
        network: the network in which ``site`` was found, not yet swapped.
        site: the site.

    Example:
        >>> import torch
        >>> from nni_blockswap.blocks.finding import find
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.GroupNorm(4, 8), nn.SiLU())
        >>> (site,) = find(network, torch.zeros(1, 3, 9, 9)).sites
        >>> norm_like(network, site)(12), activation_like(network, site)
        (GroupNorm(6, 12, eps=1e-05, affine=True), SiLU())
    """
    if site.norm is None:
        return None
    original = network.get_submodule(site.norm)
    return lambda channels: resized(original, channels)


def activation_like(network: nn.Module, site: FoundSite) -> nn.Module:
    """An activation like the site's, with fresh weights if it has any; an identity where ``norm`` contains it."""
    if site.activation is None:
        return nn.Identity()
    if is_function(site.activation):
        return module_of(site.activation)
    original = network.get_submodule(site.activation)
    return nn.PReLU() if isinstance(original, nn.PReLU) else copy.deepcopy(original).requires_grad_(True)


def resized(original: nn.Module, channels: int) -> nn.Module:
    """A normalisation like ``original`` for ``channels`` of them, as ``norm_like`` makes it."""
    norm = copy.deepcopy(original).requires_grad_(True)
    for name, tensor in (*original.named_parameters(recurse=False), *original.named_buffers(recurse=False)):
        shape = (channels,) if tensor.dim() else ()
        mean = tensor.detach().float().mean().to(tensor.dtype)
        fresh = tensor.new_full(shape, FRESH[name]) if name in FRESH else mean.repeat(shape)
        setattr(norm, name, nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh)
    if isinstance(norm, nn.GroupNorm):
        size = norm.num_channels // norm.num_groups
        norm.num_groups = channels // size if channels % size == 0 else math.gcd(norm.num_groups, channels)
        norm.num_channels = channels
    elif isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (channels,)
    elif isinstance(norm, nn.modules.batchnorm._NormBase):
        norm.num_features = channels
    else:  # a class of somebody's own may know its width
        widths = {len(tensor) for tensor in original.parameters(recurse=False)}
        known = [name for name, one in vars(norm).items() if type(one) is int and one in widths]
        vars(norm).update({name: channels for name in known if "group" not in name.lower()})
    return norm

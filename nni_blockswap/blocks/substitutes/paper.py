"""The paper's substitutes S, G(g), B(b), BG(b,g): spelling, convolutions, modules (section 3.1, appendix A).

A substitute replaces the whole residual branch of a block. With N channels in and out, M = N/b, kernel k:

    ==========  =================================================================  =====================
    substitute  branch (BN and ReLU between any two convolutions, no biases)       convolution weights
    ==========  =================================================================  =====================
    S           k x k conv, k x k conv                                             2 k^2 N^2
    G(g)        twice: k x k conv in g groups, 1x1 conv                            2 (k^2 N^2 / g + N^2)
    B(b)        1x1 conv to M, k x k conv on M, 1x1 conv to N                      2 N^2 / b + k^2 M^2
    BG(b,g)     as B(b), its k x k conv in g groups                                2 N^2 / b + k^2 M^2 / g
    ==========  =================================================================  =====================

In ``G`` BN and ReLU stand between the two pairs too. The stride sits on the first k x k convolution. In ``G`` the first
grouped convolution keeps the input width and its 1x1 convolution changes it; in ``B`` and ``BG`` M is taken from the
output width.

At a site of one k x k convolution they stand around that: S is k x k, ``G`` one pair, ``B`` and ``BG`` as above.
Padding, dilation, last bias, normalisation and activation are the network's own. Where another width than N is between
the original's convolutions, it is between those of ``S``, and between the pairs of ``G``.

Group counts may be written relative to the width of the grouped convolution itself: ``G(N/8)``, ``BG(2,M/4)``. Two
spellings that mean the same branch at a site have one canonical form: integers, except in ``G`` at a site that changes
width, where ``G(N/8)`` from 64 to 128 channels means 8 groups, then 16, and no integer says so.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.inheritance import (
    copy_affine,
    copy_bias,
    dense_convolutions,
    factorise_inputs,
    factorise_outputs,
    first_norm,
    importance,
    lifted,
    settled,
)
from nni_blockswap.blocks.site import Kernel, Site, spelled
from nni_blockswap.cost.table import ORIGINAL
from nni_blockswap.errors import SpaceError

PAPER = (
    ORIGINAL,
    "B(2)",
    "B(4)",
    *(f"G({g})" for g in (2, 4, 8, 16, "N/16", "N/8", "N/4", "N/2", "N")),
    *(f"BG(2,{g})" for g in (2, 4, 8, 16, "M/16", "M/8", "M/4", "M/2", "M")),
)
"""The paper's candidates (section 4)."""

PUBLISHED_EXTRA = ("BG(4,M/8)", "BG(4,M/4)", "BG(4,M/2)")
"""Substitutes that the authors' published networks also use."""


@dataclass(frozen=True)
class Conv:
    """One convolution of a branch; ``spatial`` ones take padding and dilation from the site."""

    in_channels: int
    out_channels: int
    kernel: Kernel = 1
    stride: Kernel = 1
    groups: int = 1
    spatial: bool = False


class Paper:
    """The family of S, G, B and BG."""

    usage = "S, G(g), B(b) or BG(b,g), as in G(8), G(N/16), B(2), BG(2,M/4)"

    def reads(self, name: str) -> bool:
        """Whether it is spelled as one of them."""
        return _SPELLING.fullmatch(spelled(name)) is not None

    def canonical(self, name: str, site: Site) -> str:
        """The one spelling of the branch that ``name`` means at ``site``.

        Raises:
            SpaceError: it does not divide the widths of the site.

        Example:
            >>> PAPERS.canonical("G(N/16)", Site(128, 128)), PAPERS.canonical("BG(2, 1)", Site(128, 128))
            ('G(8)', 'B(2)')
            >>> PAPERS.canonical("g(n/8)", Site(64, 128))
            'G(N/8)'
        """
        kind, arguments = _parse(name)
        if site.expansion is not None and kind != ORIGINAL:
            raise SpaceError(
                f"'{name}' does not fit here: an inverted residual has no dense convolution; write MB(e,k)."
            )
        layers = _KINDS[kind](name, site, arguments)
        if kind == "G":
            groups = [layer.groups for layer in layers if layer.spatial]
            if len(set(groups)) == 1:
                return f"G({groups[0]})"
            ratio = site.in_channels // groups[0]
            return "G(N)" if ratio == 1 else f"G(N/{ratio})"
        if kind == "BG":
            return f"B({arguments[0]})" if layers[1].groups == 1 else f"BG({arguments[0]},{layers[1].groups})"
        return spelled(name)

    def build(self, name: str, site: Site) -> nn.Sequential:
        """The branch: ``conv1, bn1, relu1, conv2, ...``, ending in its last convolution."""
        return stacked(convs(name, site), site)

    @torch.no_grad()
    def inherit(self, branch: nn.Module, original: nn.Module, entered: Tensor) -> bool:
        """Low-rank and grouped approximations of the original's kernels, one after the other, up to the last one.

        ``G``: each pair the nearest to one convolution. ``B`` and ``BG``: the nearest to the first one, with its most
        important outputs alone; or, at a convolution alone, to that one, with the outputs' first singular vectors. One
        that is wider inside than the original has outputs, or singular vectors, takes over nothing.
        """
        own: list[Any] = list(branch.children())
        theirs = dense_convolutions(original)
        if len(theirs) == 2 and theirs[0].out_channels != theirs[1].in_channels:
            return False
        norm = first_norm(original, theirs[0].out_channels)
        if len(own[::3]) == 2 * len(theirs):
            _inherit_pairs(own, theirs, norm, entered)
            return True
        if len(own[::3]) != 3 or len(theirs) not in (1, 2) or own[3].out_channels > _directions(theirs):
            return False
        _inherit_bottleneck(own, theirs, norm, entered)
        return True


PAPERS = Paper()


def convs(name: str, site: Site) -> tuple[Conv, ...]:
    """Convolutions of substitute ``name`` at ``site``, in forward order.

    Raises:
        SpaceError: ``name`` is not a substitute of the paper's, or does not divide the widths of the site.

    Example:
        >>> [conv.groups for conv in convs("G(N/8)", Site(64, 128, stride=2))]
        [8, 1, 16, 1]
    """
    kind, arguments = _parse(name)
    return _KINDS[kind](name, site, arguments)


def stacked(branch: Sequence[Conv], site: Site) -> nn.Sequential:
    """``branch`` as modules, the network's own normalisation and activation between any two convolutions."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, conv in enumerate(branch, start=1):
        if number > 1:
            layers[f"bn{number - 1}"] = site.norm(conv.in_channels)
            layers[f"relu{number - 1}"] = site.activation()
        layers[f"conv{number}"] = conv_module(conv, site, bias=site.bias and number == len(branch))
    return nn.Sequential(layers)


def conv_module(conv: Conv, site: Site, bias: bool = False) -> nn.Conv2d:
    """The module of a branch's convolution; a spatial one has the site's padding and dilation."""
    if not conv.spatial:
        return nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=bias)
    kernel, dilation = (both if isinstance(both, tuple) else (both, both) for both in (conv.kernel, site.dilation))
    same = tuple(step * (size - 1) // 2 for size, step in zip(kernel, dilation, strict=True))
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel,
        stride=conv.stride,
        padding=same if site.padding is None else site.padding,  # type: ignore[arg-type]
        dilation=site.dilation,
        groups=conv.groups,
        bias=bias,
        padding_mode=site.padding_mode,  # type: ignore[arg-type]  # one of torch's
    )


# --- from the original's weights; a branch is a convolution, a normalisation, an activation, a convolution, ... -------


def _inherit_pairs(own: list[Any], theirs: list[nn.Conv2d], norm: nn.Module | None, x: Tensor) -> None:
    for number, original in enumerate(theirs):
        grouped, between, activation, pointwise, *after = own[6 * number : 6 * number + 6]
        factorise_outputs(grouped, pointwise, original.weight)
        x, scale = lifted(between, grouped(x))
        pointwise.weight.mul_(scale[:, None, None])
        copy_bias(pointwise, original)
        x = pointwise(activation(x))
        if after:
            copy_affine(after[0], norm)
            x = after[1](settled(after[0], x))


def _directions(theirs: Sequence[nn.Conv2d]) -> int:
    """Inner channels that there is something for: outputs of the first of two convolutions; the rank of one alone."""
    kernel = theirs[0].weight.flatten(1)
    return len(kernel) if len(theirs) == 2 else min(kernel.shape)


def _inherit_bottleneck(own: list[Any], theirs: list[nn.Conv2d], norm: nn.Module | None, x: Tensor) -> None:
    down, before, activation, spatial, after, _, up = own
    kernel, middle = theirs[0].weight, spatial.out_channels
    if len(theirs) == 2:
        kept = importance(kernel, theirs[1].weight, norm).topk(middle).indices.sort().values
        wanted, last = kernel[kept], theirs[1].weight[:, kept].sum((2, 3))
        copy_affine(after, norm, kept)
    else:
        left = torch.linalg.svd(kernel.flatten(1), full_matrices=False).U[:, :middle]
        wanted, last = torch.einsum("nm,ncij->mcij", left, kernel), left
    factorise_inputs(down, spatial, wanted)
    x, scale = lifted(before, down(x))
    spatial.weight.view(spatial.groups, -1, *spatial.weight.shape[1:]).mul_(scale.view(spatial.groups, 1, -1, 1, 1))
    x = spatial(activation(x))
    if len(theirs) == 2:
        settled(after, x)
    else:
        last = last * lifted(after, x)[1]
    up.weight.copy_(last[:, :, None, None])
    copy_bias(up, theirs[-1])


# --- the kinds: (name, site, arguments) -> convolutions -------------------------------------------------------------


def _standard(name: str, site: Site, arguments: Sequence[str]) -> tuple[Conv, ...]:
    first = Conv(site.in_channels, site.inside, site.kernel, site.stride, spatial=True)
    if site.convolutions == 1:
        return (first,)
    return first, Conv(site.inside, site.out_channels, site.kernel, spatial=True)


def _grouped(name: str, site: Site, arguments: Sequence[str]) -> tuple[Conv, ...]:
    first = _groups(name, arguments[0], site.in_channels, "N")
    pair = (
        Conv(site.in_channels, site.in_channels, site.kernel, site.stride, first, spatial=True),
        Conv(site.in_channels, site.inside),
    )
    if site.convolutions == 1:
        return pair
    second = _groups(name, arguments[0], site.inside, "N")
    return (
        *pair,
        Conv(site.inside, site.inside, site.kernel, 1, second, spatial=True),
        Conv(site.inside, site.out_channels),
    )


def _bottleneck(name: str, site: Site, arguments: Sequence[str]) -> tuple[Conv, ...]:
    middle = _quotient(name, site.out_channels, int(arguments[0]))
    groups = _groups(name, arguments[1], middle, "M") if len(arguments) > 1 else 1
    return (
        Conv(site.in_channels, middle),
        Conv(middle, middle, site.kernel, site.stride, groups, spatial=True),
        Conv(middle, site.out_channels),
    )


_KINDS: dict[str, Callable[[str, Site, Sequence[str]], tuple[Conv, ...]]] = {
    ORIGINAL: _standard,
    "G": _grouped,
    "B": _bottleneck,
    "BG": _bottleneck,
}

_RELATIVE = r"(?:[1-9]\d*|{0}(?:/[1-9]\d*)?)"
_SPELLING = re.compile(
    rf"(?P<S>S)|G\((?P<G>{_RELATIVE.format('N')})\)|B\((?P<B>[1-9]\d*)\)|BG\((?P<BG>[1-9]\d*,{_RELATIVE.format('M')})\)"
)


def _parse(name: str) -> tuple[str, tuple[str, ...]]:
    match = _SPELLING.fullmatch(spelled(name))
    if match is None or match.lastgroup is None:
        raise SpaceError(f"'{name}' is not a substitute; write {Paper.usage}.")
    kind = match.lastgroup
    return kind, () if kind == "S" else tuple(match[kind].split(","))


def _groups(name: str, text: str, width: int, letter: str) -> int:
    """Group count written as ``8``, ``N`` or ``N/8``, for a convolution of ``width`` channels."""
    if text.startswith(letter):
        return _quotient(name, width, int(text[2:] or 1))
    _quotient(name, width, int(text))
    return int(text)


def _quotient(name: str, width: int, divisor: int) -> int:
    if width % divisor:
        raise SpaceError(
            f"'{name}' does not fit here: {divisor} does not divide {width} channels; choose a divisor of {width}."
        )
    return width // divisor

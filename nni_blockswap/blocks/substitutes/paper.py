"""The substitute blocks S, G(g), B(b), BG(b,g): spelling, convolutions, candidates, modules (section 3.1, appendix A).

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

Group counts may be written relative to the width of the grouped convolution itself: ``G(N/8)``, ``BG(2,M/4)``. Two
spellings that mean the same branch at a site have one canonical form: integers, except in ``G`` at a site that changes
width, where ``G(N/8)`` from 64 to 128 channels means 8 groups, then 16, and no integer says so.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from nni_blockswap.errors import SpaceError

IDENTITY = "S"
"""The substitute that keeps the original residual branch."""

PAPER = (
    "S",
    "B(2)",
    "B(4)",
    *(f"G({g})" for g in (2, 4, 8, 16, "N/16", "N/8", "N/4", "N/2", "N")),
    *(f"BG(2,{g})" for g in (2, 4, 8, 16, "M/16", "M/8", "M/4", "M/2", "M")),
)
"""The paper's candidates (section 4)."""

PUBLISHED_EXTRA = ("BG(4,M/8)", "BG(4,M/4)", "BG(4,M/2)")
"""Substitutes that the authors' published networks also use."""


@dataclass(frozen=True)
class Site:
    """Where a residual branch sits: its widths, its stride and the kernel of its spatial convolutions."""

    in_channels: int
    out_channels: int
    stride: int = 1
    kernel: int = 3


@dataclass(frozen=True)
class Conv:
    """One bias-free convolution of a branch, padded by ``kernel // 2``."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1

    @property
    def weights(self) -> int:
        """Number of weights: k^2 * C_in / groups * C_out."""
        return self.kernel**2 * self.in_channels // self.groups * self.out_channels


def convs(name: str, site: Site) -> tuple[Conv, ...]:
    """Convolutions of substitute ``name`` at ``site``, in forward order.

    Raises:
        SpaceError: ``name`` is not a substitute, or does not divide the widths of the site.

    Example:
        >>> [conv.groups for conv in convs("G(N/8)", Site(64, 128, stride=2))]
        [8, 1, 16, 1]
    """
    kind, arguments = _parse(name)
    return _KINDS[kind](name, site, arguments)


def canonical(name: str, site: Site) -> str:
    """The one spelling of the branch that ``name`` means at ``site``.

    Example:
        >>> canonical("G(N/16)", Site(128, 128)), canonical("BG(2, 1)", Site(128, 128))
        ('G(8)', 'B(2)')
        >>> canonical("g(n/8)", Site(64, 128))
        'G(N/8)'
    """
    kind, arguments = _parse(name)
    layers = _KINDS[kind](name, site, arguments)
    if kind == "G":
        first, second = layers[0].groups, layers[2].groups
        if first == second:
            return f"G({first})"
        ratio = site.in_channels // first
        return "G(N)" if ratio == 1 else f"G(N/{ratio})"
    if kind == "BG":
        return f"B({arguments[0]})" if layers[1].groups == 1 else f"BG({arguments[0]},{layers[1].groups})"
    return name.strip().upper().replace(" ", "")


def candidates(site: Site, extra: Iterable[str] = ()) -> tuple[str, ...]:
    """The paper's candidates at ``site`` and then ``extra``, canonical, without duplicates.

    A candidate of the paper's list that does not divide the widths of this site is left out; an ``extra`` one that does
    not is left out too, unless it is no substitute at all.
    """
    found: dict[str, None] = {}
    for name in (*PAPER, *extra):
        _parse(name)
        try:
            found[canonical(name, site)] = None
        except SpaceError:
            continue
    return tuple(found)


def branch(name: str, site: Site, norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """The residual branch: ``conv1, bn1, relu1, conv2, ...``, ending in its last convolution."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, conv in enumerate(convs(name, site), start=1):
        if number > 1:
            layers[f"bn{number - 1}"] = norm_layer(conv.in_channels)
            layers[f"relu{number - 1}"] = nn.ReLU(inplace=True)
        layers[f"conv{number}"] = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel,
            stride=conv.stride,
            padding=conv.kernel // 2,
            groups=conv.groups,
            bias=False,
        )
    return nn.Sequential(layers)


# --- the four kinds: (name, site, arguments) -> convolutions --------------------------------------------------------


def _standard(name: str, site: Site, arguments: Sequence[str]) -> tuple[Conv, ...]:
    return (
        Conv(site.in_channels, site.out_channels, site.kernel, site.stride),
        Conv(site.out_channels, site.out_channels, site.kernel),
    )


def _grouped(name: str, site: Site, arguments: Sequence[str]) -> tuple[Conv, ...]:
    first = _groups(name, arguments[0], site.in_channels, "N")
    second = _groups(name, arguments[0], site.out_channels, "N")
    return (
        Conv(site.in_channels, site.in_channels, site.kernel, site.stride, first),
        Conv(site.in_channels, site.out_channels, 1),
        Conv(site.out_channels, site.out_channels, site.kernel, 1, second),
        Conv(site.out_channels, site.out_channels, 1),
    )


def _bottleneck(name: str, site: Site, arguments: Sequence[str]) -> tuple[Conv, ...]:
    middle = _quotient(name, site.out_channels, int(arguments[0]))
    groups = _groups(name, arguments[1], middle, "M") if len(arguments) > 1 else 1
    return (
        Conv(site.in_channels, middle, 1),
        Conv(middle, middle, site.kernel, site.stride, groups),
        Conv(middle, site.out_channels, 1),
    )


_KINDS: dict[str, Callable[[str, Site, Sequence[str]], tuple[Conv, ...]]] = {
    "S": _standard,
    "G": _grouped,
    "B": _bottleneck,
    "BG": _bottleneck,
}

_RELATIVE = r"(?:[1-9]\d*|{0}(?:/[1-9]\d*)?)"
_SPELLING = re.compile(
    rf"(?P<S>S)|G\((?P<G>{_RELATIVE.format('N')})\)|B\((?P<B>[1-9]\d*)\)|BG\((?P<BG>[1-9]\d*,{_RELATIVE.format('M')})\)"
)


def _parse(name: str) -> tuple[str, tuple[str, ...]]:
    match = _SPELLING.fullmatch("".join(str(name).split()).upper())
    if match is None or match.lastgroup is None:
        raise SpaceError(
            f"'{name}' is not a substitute; write S, G(g), B(b) or BG(b,g), as in G(8), G(N/16), B(2), BG(2,M/4)."
        )
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

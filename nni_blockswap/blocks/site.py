"""A site: a place in a network whose module can be swapped, and the substitutes that can stand there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from torch import Tensor, nn

from nni_blockswap.errors import SpaceError
from nni_blockswap.registry import Registry, import_named

Kernel = int | tuple[int, int]


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


@dataclass(frozen=True)
class Site:
    """Where a branch of convolutions sits, and what a substitute has to take over from it.

    Attributes:
        in_channels, out_channels: widths of what enters and leaves.
        stride: of the first spatial convolution.
        kernel: of the spatial convolutions.
        convolutions: how many spatial convolutions the original has: 2, a residual branch, or 1, a convolution alone.
        padding: of the spatial convolutions; None keeps the size, ``dilation * (kernel - 1) / 2``.
        dilation: likewise.
        bias: whether the branch's last convolution has one.
        padding_mode: of the spatial convolutions.
        norm: makes the network's own normalisation for a number of channels.
        activation: makes its activation.
        expansion: of an inverted residual, the width inside over ``in_channels``; None elsewhere.
        middle_channels: width between the convolutions of a residual branch; None where it is ``out_channels``.
        narrow: makes the original branch with a number of channels inside, and an inverted residual with a depthwise
            kernel, all else as it is there, its weights fresh; None where it is as the paper has it.
        rigid: what stands between the original's convolutions and cannot have fewer channels; None where nothing does.
    """

    in_channels: int
    out_channels: int
    stride: Kernel = 1
    kernel: Kernel = 3
    convolutions: int = 2
    padding: Kernel | str | None = None
    dilation: Kernel = 1
    bias: bool = False
    padding_mode: str = "zeros"
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    activation: Callable[[], nn.Module] = _relu
    expansion: Fraction | None = None
    middle_channels: int | None = None
    narrow: Callable[..., nn.Module] | None = None
    rigid: str | None = None

    def __str__(self) -> str:
        """Its widths, ``64-128``."""
        return f"{self.in_channels}-{self.out_channels}"

    @property
    def inside(self) -> int:
        """Width between the convolutions of a residual branch; of a convolution alone, the width that leaves."""
        return self.out_channels if self.middle_channels is None else self.middle_channels

    def canonical(self, name: str) -> str:
        """The one spelling of the branch that ``name`` means here.

        Raises:
            SpaceError: it is no substitute, or does not fit here.
        """
        return find_family(name).canonical(_bare(name), self)

    def build(self, name: str) -> nn.Module:
        """The branch that ``name`` means here: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return find_family(name).build(_bare(name), self)

    def inherit(self, name: str, branch: nn.Module, original: nn.Module, entered: Tensor) -> bool:
        """Let ``branch``, built as ``name``, begin with what ``original`` has. Returns whether its family did so.

        Args:
            name: a candidate.
            branch: what ``build`` made of it.
            original: what it stands in for.
            entered: what enters ``original`` in the trained network: (N, in_channels, H, W).
        """
        begin = getattr(find_family(name), "inherit", None)
        return begin is not None and begin(branch, original, entered) is not False

    def candidates(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of ``names`` that fit here, canonical, each once. Raises SpaceError for one that is no substitute."""
        found: dict[str, None] = {}
        for name in names:
            family = find_family(name)
            try:
                found[family.canonical(_bare(name), self)] = None
            except SpaceError:
                continue
        return tuple(found)


class Family(Protocol):
    """A kind of substitute: how it is spelled, and how it is built for a site.

    One that can begin with the original's weights has a method ``inherit(branch, original, entered)``, too, which sets
    weights and statistics of a ``branch`` that it built, given what enters the original. Where the original is not what
    it expects it leaves the branch as it is and returns False; statistics are those of what enters then.

    Names may hold parentheses, commas and slashes, but no dots: they are candidates of an NNI ``LayerChoice``.
    """

    usage: str
    """How it is spelled, for messages: ``MB(e), as in MB(6)``."""

    def reads(self, name: str) -> bool:
        """Whether ``name`` is one of this family."""

    def canonical(self, name: str, site: Site) -> str:
        """The one spelling of what ``name`` means at ``site``; SpaceError where it does not fit there."""

    def build(self, name: str, site: Site) -> nn.Module:
        """The module; costs are read off it, and its weights are drawn as it is built."""


FAMILIES: Registry[Family] = Registry(
    "family of substitutes",
    {
        "paper": "nni_blockswap.blocks.substitutes.paper:PAPERS",
        "mobile": "nni_blockswap.blocks.substitutes.mobile:MOBILE",
        "darts": "nni_blockswap.blocks.substitutes.darts:DARTS",
        "narrowed": "nni_blockswap.blocks.substitutes.narrowed:NARROWED",
        "inverted": "nni_blockswap.blocks.substitutes.inverted:INVERTED",
    },
    SpaceError,
)
"""Families by name. A module outside this package registers its own as it is imported. In front of a substitute it says
where that is: ``extra=["my_package.blocks:MB(4)"]`` offers ``MB(4)`` in every process that builds the space."""


def find_family(name: str) -> Family:
    """The family that ``name`` is of. Raises SpaceError where there is none."""
    module, _, bare = str(name).rpartition(":")
    if module:
        import_named(module, "module of substitutes", SpaceError)
    for known in FAMILIES:
        if FAMILIES[known].reads(bare):
            return FAMILIES[known]
    usages = "; or ".join(FAMILIES[known].usage for known in FAMILIES)
    raise SpaceError(f"'{name}' is not a substitute; write {usages}.")


def spelled(name: str) -> str:
    """A substitute's name without spaces and in capitals, as families read it: ``g( n/8 )`` is ``G(N/8)``."""
    return "".join(str(name).split()).upper()


def is_everywhere(name: str) -> bool:
    """Whether every process knows the substitute: it says where its family is, or that is this package's own."""
    own = (known for known in FAMILIES if FAMILIES.is_everywhere(known))
    return FAMILIES.is_everywhere(name) or any(FAMILIES[known].reads(name) for known in own)


def _bare(name: str) -> str:
    """Without the module that its family is registered in."""
    return str(name).rpartition(":")[2]


def label(index: int) -> str:
    """Label of the block at ``index`` in forward order."""
    return f"block_{index:02d}"

"""What a look at a network finds: the sites where it can be swapped, the convolutions that stay and why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["conv", "branch", "inverted"]


@dataclass(frozen=True)
class FoundSite:
    """Where a site was found: a chain of modules with one tensor in and one out, in whose place another can stand.

    ========  ======================================================  ================================================
    kind      the chain                                               ``path``
    ========  ======================================================  ================================================
    conv      one k x k convolution                                   the convolution
    branch    k x k convolution .. k x k convolution, then added      the smallest module that holds both
    inverted  1x1 expansion .. depthwise k x k .. 1x1 projection      the block whose only convolutions (but those of
                                                                      its squeeze-and-excitation) these are
    ========  ======================================================  ================================================

    What stands around the chain stays: normalisation after its last convolution, shortcut, sum.
    """

    path: str
    """As above; that of the first convolution where it would else be another site's, too, or the whole network."""

    kind: Kind

    steps: tuple[str, ...]
    """The chain in forward order: paths of modules, and functions spelled as modules of torch.nn (``"ReLU()"``)."""

    shared: tuple[str, ...]
    """Those of the modules, all without weights, that also run elsewhere: a ReLU used twice."""

    in_shape: tuple[int, ...]
    """(C, H, W) that enters for the example input."""

    out_shape: tuple[int, ...]
    """(C, H, W) that leaves."""

    middle_channels: int
    """Width between the convolutions: of the depthwise one in an inverted residual; a conv's own output width."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    """Of the whole chain."""

    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    bias: bool
    """Whether the last convolution has one."""

    padding_mode: str

    norm: str | None
    """Path of a normalisation to imitate: the chain's own, else the one right after or before it."""

    activation: str | None
    """Path of an activation to imitate, or ``"ReLU()"`` where the network calls a function; None: ``norm`` has it."""

    rigid: str | None
    """The first step between the convolutions that cannot have fewer channels, such as a shuffle."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Paths of the original modules that make up the chain, in forward order."""
        return tuple(step for step in self.steps if not is_function(step))

    @property
    def in_channels(self) -> int:
        """Channels that enter."""
        return self.in_shape[0]

    @property
    def out_channels(self) -> int:
        """Channels that leave."""
        return self.out_shape[0]


@dataclass(frozen=True)
class Kept:
    """A convolution that stays."""

    path: str
    reason: str


@dataclass(frozen=True)
class Findings:
    """Sites and kept convolutions of one network, both in forward order; ``str`` gives a table.

    Example:
        >>> print(Findings((), (Kept("stem.0", "the stem"), Kept("a", "transposed"), Kept("b", "transposed"))))
        0 sites.
        <BLANKLINE>
        Stays:
          the stem: stem.0
          transposed (2): a, b
    """

    sites: tuple[FoundSite, ...]
    kept: tuple[Kept, ...]

    def __str__(self) -> str:
        """The sites, a line each; then what stays, a line a reason."""
        header = ("", "site", "kind", "modules", "in", "out", "kernel", "stride")
        rows = [(str(number), *_row(site)) for number, site in enumerate(self.sites)]
        kept = [f"  {line}" for line in reasons(self.kept)]
        filled = [column for column in zip(header, *rows, strict=True) if any(column[1:])]
        table = [*aligned(list(zip(*filled, strict=True))), ""] if rows else []
        count = f"{len(rows)} site{'' if len(rows) == 1 else 's'}."
        return "\n".join([*table, count, *(["", "Stays:", *kept] if kept else [])])


def is_function(step: str) -> bool:
    """Whether a step is a function spelled as a module, and not a path."""
    return step.endswith(")")


def reasons(kept: Iterable[Kept], shown: int = 4) -> list[str]:
    """A line for each reason, with the paths that it holds for, at most ``shown`` of them by name."""
    paths: dict[str, list[str]] = {}
    for one in kept:
        paths.setdefault(one.reason, []).append(one.path)
    return [
        f"{reason}{f' ({len(names)})' if len(names) > 1 else ''}: "
        + ", ".join(names[:shown])
        + (", ..." if len(names) > shown else "")
        for reason, names in paths.items()
    ]


def _row(site: FoundSite) -> tuple[str, ...]:
    ends = [part.removeprefix(f"{site.path}.") for part in (site.parts[0], site.parts[-1])]
    modules = "" if site.kind == "conv" else " .. ".join(ends)
    shapes = ["x".join(map(str, shape)) for shape in (site.in_shape, site.out_shape, site.kernel)]
    stride = str(site.stride[0]) if len(set(site.stride)) == 1 else "x".join(map(str, site.stride))
    return (site.path, site.kind, modules, *shapes, stride)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, their columns aligned.

    Example:
        >>> aligned([("site", "kind"), ("layer1.0", "branch")])
        ['site      kind', 'layer1.0  branch']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

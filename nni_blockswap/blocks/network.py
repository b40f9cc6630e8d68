"""Any network as a search space: a ``LayerChoice`` at every site that ``finding`` sees, all else left as it is."""

import copy
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, cast

import torch
from nni.nas.space import current_model, model_context
from torch import Tensor, nn

from nni_blockswap.blocks.conditions import Patterns
from nni_blockswap.blocks.finding import find
from nni_blockswap.blocks.flow import under
from nni_blockswap.blocks.found import Findings, FoundSite, aligned, reasons
from nni_blockswap.blocks.narrowing import layers, narrow
from nni_blockswap.blocks.norms import activation_like, norm_like
from nni_blockswap.blocks.origin import example_of, hold, image_size, make, repeated
from nni_blockswap.blocks.points import attention_points
from nni_blockswap.blocks.pricing import price
from nni_blockswap.blocks.shells import Block
from nni_blockswap.blocks.site import Site, label
from nni_blockswap.blocks.space import BlockSpace, is_of_detector, tell
from nni_blockswap.blocks.substitutes.inverted import MOBILE
from nni_blockswap.blocks.substitutes.paper import PAPER
from nni_blockswap.blocks.surgery import extract, place, replace
from nni_blockswap.blocks.weights import draw_anew, initialise
from nni_blockswap.cost.table import ORIGINAL, Table
from nni_blockswap.errors import BlockSwapError, SpaceError, first_line
from nni_blockswap.networks import unwrapped


class NetworkBlock(Block):
    """A site of a network: what stands around it is the network itself."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.residual(x)
        return out.clone() if self.probe._forward_hooks else out  # the network may go on in place, in what is looked at


class NetworkSpace(BlockSpace):
    """The architectures of a network that somebody has.

    Unfrozen it is the super-network, the network's own weights in all that is not swapped and in ``S``; ``build`` gives
    the network itself, of its own class, with what was chosen in its sites.

    Args:
        model: where the network comes from, the import path of a function or class, ``torchvision.models:resnet50``.
        model_args: its arguments.
        input_size: channels, height and width of one image.
        include, exclude: patterns over module paths; see ``finding.find``.
        extra: substitutes to offer beside those of each site's kind: the paper's, or ``MB(e,k)``.

    Raises:
        SpaceError: the network cannot be made, does not run, or has no site; it lives in another process.
    """

    def __init__(
        self,
        model: str,
        model_args: Mapping[str, Any] | None = None,
        input_size: Sequence[int] = (3, 224, 224),
        include: Patterns = None,
        exclude: Patterns = None,
        extra: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.input_size = cast(tuple[int, int, int], tuple(input_size))
        look = _look(model, json.dumps(model_args or {}), self.input_size, _tuple(include), _tuple(exclude))
        self.findings, self.points = look
        self.model = model
        self.network = make(model, model_args or {})
        self._extra = tuple(extra)
        chosen = current_model()
        if chosen is None:
            self._enclose()
            return
        for index, (found, site) in enumerate(self._sites()):
            if chosen[label(index)] != ORIGINAL:
                replace(self.network, found, site.build(chosen[label(index)]))

    def _sites(self) -> list[tuple[FoundSite, Site]]:
        """In forward order, as the network is before any of them is replaced."""
        return [(found, site_of(self.network, found)) for found in self.findings.sites]

    def _enclose(self) -> None:
        """Put a shell at each site."""
        for index, (found, site) in enumerate(self._sites()):
            names = site.candidates((*(PAPER if site.expansion is None else MOBILE), *self._extra))
            replace(self.network, found, NetworkBlock(label(index), site, names, extract(self.network, found)))

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)

    @property
    def places(self) -> dict[str, str]:
        """Paths of what replaces the original at each site, by block."""
        return {label(index): place(found) for index, found in enumerate(self.findings.sites)}

    def run_counted(self, batch_size: int = 1) -> None:
        """All of it, on ``batch_size`` times the example that the space was made with, or an empty image."""
        example = example_of(self.model, self.input_size, next(self.network.parameters()).device)
        self.network(*(repeated(one, batch_size) for one in example))

    def redraw(self) -> None:
        """Fresh weights everywhere, as their classes draw them, but convolutions as ``initialise`` does."""
        for module in self.modules():
            draw_anew(module)
        initialise(self)

    @classmethod
    def build(cls, choices: Mapping[str, str], **space_args: Any) -> nn.Module:
        """The network with ``choices`` (canonical names by label): ``S`` as it is, substitutes with fresh weights.

        It is of its own class. Where it has no attributes ``input_size`` and ``attention_points`` it gets the space's.
        """
        with model_context(dict(choices)):
            space = cls(**space_args)
        network = space.network
        tell(network, input_size=space.input_size, attention_points=space.points, places=space.places)
        return network

    @classmethod
    def in_shells(cls, network: nn.Module, choices: Mapping[str, str], **space_args: Any) -> "NetworkSpace":
        """``network``, what ``build`` made of ``choices`` that are all ``S``, as a space whose blocks hold these alone.

        It takes the memory of the network; its blocks have labels, sites and names of the whole space.
        """
        with model_context(dict(choices)):
            space = cls(**space_args)
            space.network = network
            space._enclose()
        return space

    @classmethod
    def interface(cls, choices: Mapping[str, str], **space_args: Any) -> tuple[tuple[int, ...], Any]:
        """Of the network itself, in training mode, in which it is scored; of a detector, what it gives in eval mode.

        Raises:
            SpaceError: it does not run in training mode.
        """
        size = tuple(space_args["input_size"])
        return size, _answer(space_args["model"], json.dumps(space_args["model_args"] or {}), size)

    @classmethod
    def cost_table(cls, resources: Sequence[str] = ("params", "macs"), **space_args: Any) -> Table:
        """Read off on the meta device, or where the network does not run there on the CPU."""
        build = partial(cls, **space_args)
        try:
            with torch.device("meta"):
                space = cls(**space_args).to("meta").eval()
            return price(space, space.blocks(), space.run_counted, resources, build)
        except BlockSwapError:
            raise
        except Exception:  # of a forward pass that is somebody else's: whatever it does with numbers fails there
            space = cls(**space_args).eval()
            return price(space, space.blocks(), space.run_counted, resources, build)

    def __str__(self) -> str:
        """Sites, candidates and their costs; then what stays, and why."""
        table = price(self, self.blocks(), self.run_counted, ("params", "macs"))
        rows = []
        for block, (name, found) in enumerate(zip(table.labels, self.findings.sites, strict=True)):
            costs = (f"{one.costs[block].min():,} to {one.costs[block].max():,}" for one in table.columns.values())
            shapes = " -> ".join("x".join(map(str, shape)) for shape in (found.in_shape, found.out_shape))
            rows.append((name, found.path or "(all)", found.kind, shapes, str(len(table.candidates[block])), *costs))
        units = (one.unit for one in table.columns.values())
        rows.insert(0, ("block", "site", "kind", "maps", "candidates", *units))
        lines = aligned(rows)
        fixed = ", ".join(f"{one.fixed:,} {one.unit}" for one in table.columns.values())
        original = ", ".join(f"{table.original_cost(name):,} {one.unit}" for name, one in table.columns.items())
        lines += [
            "",
            f"Stays: {fixed}.  The original: {original}.",
            *(f"  {one}" for one in reasons(self.findings.kept)),
        ]
        return "\n".join(lines)


def swap_blocks(
    model: nn.Module, example_input: Any, include: Patterns = None, exclude: Patterns = None, extra: Sequence[str] = ()
) -> NetworkSpace:
    """A search space over a network as it is now; ``model`` itself is not changed, and may be trained on.

    Args:
        model: any convolutional network, taken out of ``torch.compile`` and ``DataParallel``.
        example_input: what its forward takes, in the size that costs are counted at: a tensor (N, C, H, W), a list of
            images, or a tuple of positional arguments. Costs are those of one image.
        include: patterns over module paths ("layer3.*"); nothing else is swapped.
        exclude: patterns over module paths; these stay.
        extra: substitutes to offer beside those of each site's kind.

    Raises:
        SpaceError: no site, a pattern that matches nothing, weights that are not finite, or a forward pass that fails.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
        >>> space = swap_blocks(net, torch.zeros(1, 3, 8, 8))
        >>> space.blocks()[0].names
        ('S', 'B(2)', 'B(4)', 'G(2)', 'G(4)', 'G(8)', 'G(1)', 'BG(2,2)', 'BG(2,4)')
    """
    model, size = unwrapped(model), image_size(example_input)
    findings = find(model, example_input, include, exclude)  # says what is wrong, before anything is kept
    return NetworkSpace(hold(model, example_input, findings), None, size, include, exclude, extra)


def site_of(network: nn.Module, found: FoundSite) -> Site:
    """What a substitute has to take over at ``found``, normalisation and activation of the network's own kind."""
    norm, activation = norm_like(network, found), activation_like(network, found)
    original = layers(extract(network, found))
    same = tuple(step * (size - 1) // 2 for size, step in zip(found.kernel, found.dilation, strict=True))
    return Site(
        found.in_channels,
        found.out_channels,
        _one(found.stride),
        _one(found.kernel),
        convolutions=2 if found.kind == "branch" else 1,
        padding=None if found.padding == same else _one(found.padding),
        dilation=_one(found.dilation),
        bias=found.bias,
        padding_mode=found.padding_mode,
        norm=nn.BatchNorm2d if norm is None else norm,
        activation=lambda: copy.deepcopy(activation),
        expansion=Fraction(found.middle_channels, found.in_channels) if found.kind == "inverted" else None,
        middle_channels=found.middle_channels if found.kind == "branch" else None,
        narrow=(lambda *sizes: narrow(original, *sizes)) if found.kind != "conv" and found.rigid is None else None,
        rigid=found.rigid,
    )


@lru_cache(maxsize=16)
def _look(
    model: str,
    model_args: str,
    input_size: tuple[int, int, int],
    include: tuple[str, ...] | None,
    exclude: tuple[str, ...] | None,
) -> tuple[Findings, tuple[str, ...]]:
    """Sites of a network, and where attention is transferred: the ends of its stages from the first site on."""
    with torch.device("cpu"), torch.no_grad():
        network = make(model, json.loads(model_args)).eval()
        example = example_of(model, input_size, next(network.parameters()).device)
        findings = find(network, example, include, exclude)
        gone = {part for site in findings.sites for part in site.parts[:-1]}
        try:
            points = attention_points(network, example[0], findings.sites[0].parts[0])
        except Exception:  # of a detector, or a network that takes more than images, as its author will have it
            points = ()  # whoever wants attention there names its points
    return findings, tuple(point for point in points if not any(under(point, part) for part in gone))


@lru_cache(maxsize=16)
def _answer(model: str, model_args: str, input_size: tuple[int, ...]) -> Any:
    with torch.device("cpu"), torch.no_grad():
        network = make(model, json.loads(model_args)).eval()
        example = example_of(model, input_size, next(network.parameters()).device)
        found = network(*example)
        if is_of_detector(found):
            return found
        if len(example) > 1:
            raise SpaceError(
                f"{model} takes {len(example)} inputs, and a search has images alone for it; wrap it in a module whose "
                "forward takes the images and makes the others."
            )
        try:
            return network.train()(repeated(example[0], 2))  # BN refuses single values
        except Exception as error:  # a network of somebody else's
            raise SpaceError(f"{model} runs in eval mode and not in training mode: {first_line(error)}.") from error


def _one(sizes: tuple[int, ...] | str) -> Any:
    """(3, 3) -> 3."""
    return sizes[0] if not isinstance(sizes, str) and len(set(sizes)) == 1 else sizes


def _tuple(patterns: Patterns) -> tuple[str, ...] | None:
    return (patterns,) if isinstance(patterns, str) else None if patterns is None else tuple(patterns)

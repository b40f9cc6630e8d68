"""Shells: what stays of a block when its branch is swapped, around an NNI ``LayerChoice`` over the candidates.

Unfrozen, a shell holds the weights of every candidate, and ``select`` picks the one that runs. Frozen (built under
NNI's ``model_context``) its branch is the chosen candidate itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nni.nas.nn.pytorch import LayerChoice
from nni.nas.space import current_model
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from nni_blockswap.blocks.site import Site
from nni_blockswap.blocks.substitutes.paper import PAPER
from nni_blockswap.cost.table import ORIGINAL
from nni_blockswap.errors import SpaceError


class Block(nn.Module):
    """A place whose branch can be swapped.

    Args:
        label: name of the choice, ``block_00``, ``block_01``, ... in forward order.
        site: what a substitute takes over.
        names: canonical candidates.
        original: what ``S`` is; without one it is built like the others.
    """

    branch: nn.Module
    """The ``LayerChoice``, or in a frozen network the chosen candidate."""

    probe: nn.Identity
    """Passes on what leaves the branch's last convolution, before it is added: Fisher information is taken here."""

    def __init__(self, label: str, site: Site, names: Sequence[str], original: nn.Module | None = None) -> None:
        super().__init__()
        self.label = label
        self.site = site
        self.names = tuple(names)
        chosen = current_model()  # under model_context only the chosen branch is built
        self.selected: str | None = None if chosen is None else chosen[label]
        built = {name: site.build(name) for name in (self.names if chosen is None else (chosen[label],))}
        if original is not None and ORIGINAL in built:  # drawn all the same: what is drawn next has the same weights
            built[ORIGINAL] = original
        self.branch = LayerChoice(built, label=label)
        self.probe = nn.Identity()

    def select(self, name: str) -> None:
        """Make an unfrozen block run candidate ``name``."""
        if name not in self.names:
            raise SpaceError(f"'{name}' is no candidate of {self.label}; it has {', '.join(self.names)}.")
        self.selected = name

    def candidate(self, name: str) -> nn.Module:
        """The module of a candidate, in an unfrozen block."""
        choice: Any = self.branch
        found: nn.Module = choice[name]
        return found

    def active_branch(self) -> nn.Module:
        """The branch that runs: the selected one, a frozen network's only one, else NNI's dry-run choice."""
        if self.selected is None or not isinstance(self.branch, LayerChoice):
            return self.branch
        return self.candidate(self.selected)

    def residual(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H / stride, W / stride)."""
        out: Tensor = self.probe(self.active_branch()(x))
        return out


class PreActivationBlock(Block):
    """Shell of a wide residual network: BN and ReLU come first; the shortcut is 1x1 where width or resolution changes.

    Source: Zagoruyko & Komodakis, *Wide Residual Networks*, BMVC 2016.
    """

    def __init__(self, label: str, site: Site, names: Sequence[str]) -> None:
        super().__init__(label, site, names)
        self.bn = nn.BatchNorm2d(site.in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Conv2d | None = None
        if site.stride != 1 or site.in_channels != site.out_channels:
            self.shortcut = nn.Conv2d(site.in_channels, site.out_channels, 1, stride=site.stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn(x))
        return (x if self.shortcut is None else self.shortcut(activated)) + self.residual(activated)


class PostActivationBlock(Block):
    """Shell of torchvision's ``BasicBlock``: relu(bn2(branch(x)) + shortcut(x)).

    All modules are the original's own: those of ``S``, ``bn2`` and ``downsample``. A checkpoint of the original loads
    into a network with ``S`` here.

    Args:
        label: name of the choice.
        original: the block to convert.
        extra: substitutes to offer beside the paper's.
    """

    def __init__(self, label: str, original: BasicBlock, extra: Sequence[str] = ()) -> None:
        conv = original.conv1
        site = Site(conv.in_channels, conv.out_channels, conv.stride[0], conv.kernel_size[0], norm=type(original.bn1))
        branch = nn.Sequential()
        for name, part in (("conv1", conv), ("bn1", original.bn1), ("relu1", original.relu), ("conv2", original.conv2)):
            branch.add_module(name, part)
        super().__init__(label, site, site.candidates((*PAPER, *extra)), branch)
        self.bn2 = original.bn2
        self.downsample = original.downsample
        self.relu = nn.ReLU(inplace=True)
        self.register_load_state_dict_pre_hook(_load_original)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn2(self.residual(x)) + shortcut)
        return out


def _load_original(block: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let the names conv1, bn1 and conv2 of torchvision's ``BasicBlock`` load into a frozen branch ``S``."""
    names = [name for name, _ in block.get_submodule("branch").named_children()]
    if isinstance(block, Block) and block.selected == ORIGINAL and not isinstance(block.branch, LayerChoice):
        for key in list(state_dict):
            if key.startswith(tuple(f"{prefix}{name}." for name in names)):
                state_dict[f"{prefix}branch.{key.removeprefix(prefix)}"] = state_dict.pop(key)


@contextmanager
def probed(blocks: Sequence[Block]) -> Iterator[list[Tensor]]:
    """Collect what passes the probes of ``blocks``, in forward order, ready for gradients.

    Where all weights are frozen the graph starts at the first probe, so that nothing is kept for what lies before it.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output if output.requires_grad else output.requires_grad_())

    handles = [block.probe.register_forward_hook(keep) for block in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()

"""Residual shells with one NNI ``LayerChoice`` each, and the base class of the search spaces made of them.

A shell is what stays when a block is substituted: its normalisation, shortcut and sum. Its branch is a ``LayerChoice``
over substitutes. Unfrozen, one space is a super-network that holds the weights of every candidate; ``select`` picks
which one a shell runs. Frozen (built under NNI's ``model_context``) the branch is the chosen substitute itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.space import current_model, model_context
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from nni_blockswap.blocks.substitutes.paper import Site, branch, candidates
from nni_blockswap.cost.table import CostTable, cost_table
from nni_blockswap.errors import SpaceError


class Block(nn.Module):
    """A residual block whose branch can be substituted.

    Args:
        label: name of the choice, ``block_00``, ``block_01``, ... in forward order.
        site: widths, stride and kernel of the branch.
        names: canonical candidates.
        norm_layer: makes the branch's normalisation for a number of channels.
    """

    branch: nn.Module
    """The ``LayerChoice``, or in a frozen network the chosen substitute."""

    probe: nn.Identity
    """Passes on what leaves the branch's last convolution, before it is added: Fisher information is taken here."""

    def __init__(
        self,
        label: str,
        site: Site,
        names: Sequence[str],
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.label = label
        self.site = site
        self.names = tuple(names)
        self.norm_params = sum(parameter.numel() for parameter in norm_layer(1).parameters())
        self.selected: str | None = None
        chosen = current_model()  # under model_context only the chosen branch is built
        built = self.names if chosen is None else (chosen[label],)
        self.branch = LayerChoice({name: branch(name, site, norm_layer) for name in built}, label=label)
        self.probe = nn.Identity()

    def select(self, name: str) -> None:
        """Make an unfrozen block run candidate ``name``."""
        if name not in self.names:
            raise SpaceError(f"'{name}' is no candidate of {self.label}; it has {', '.join(self.names)}.")
        self.selected = name

    def active_branch(self) -> nn.Module:
        """The branch that runs: the selected one, a frozen network's only one, else NNI's dry-run choice."""
        if self.selected is None or not isinstance(self.branch, LayerChoice):
            return self.branch
        selected: nn.Module = self.branch[self.selected]
        return selected

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

    ``bn2`` and ``downsample`` are the original's own modules. A checkpoint of the original loads into branch ``S``.

    Args:
        label: name of the choice.
        original: the block to convert.
        extra: substitutes to offer beside the paper's.
    """

    def __init__(self, label: str, original: BasicBlock, extra: Sequence[str] = ()) -> None:
        conv = original.conv1
        site = Site(conv.in_channels, conv.out_channels, conv.stride[0], conv.kernel_size[0])
        super().__init__(label, site, candidates(site, extra), type(original.bn1))
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
    if names == ["conv1", "bn1", "relu1", "conv2"]:  # no other substitute has two convolutions
        for key in list(state_dict):
            if key.startswith(tuple(f"{prefix}{name}." for name in names)):
                state_dict[f"{prefix}branch.{key.removeprefix(prefix)}"] = state_dict.pop(key)


class BlockSpace(ModelSpace, disable_init_wrapper=True):  # type: ignore[misc, call-arg]  # NNI is not typed
    """Base of all search spaces: a network with ``Block`` shells, built by its subclass's constructor.

    A subclass sets ``input_size`` and, for attention transfer, names its ``attention_points``.
    """

    input_size: tuple[int, int, int]
    """Channels, height and width of one image; MACs are counted at this size."""

    attention_points: ClassVar[tuple[str, ...]] = ()
    """Modules, by path and in forward order, at whose outputs attention is transferred."""

    detects: ClassVar[bool] = False
    """Whether its networks are detectors, which take images and targets as lists; else they classify."""

    def blocks(self) -> list[Block]:
        """The blocks in forward order."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def select(self, choices: Mapping[str, str]) -> None:
        """Make an unfrozen space run the architecture ``choices`` (canonical names by label)."""
        for block in self.blocks():
            block.select(choices[block.label])

    def active_parameters(self) -> list[nn.Parameter]:
        """Parameters of the architecture that runs: those of no branch, and those of the active branches."""
        branches = {id(p) for block in self.blocks() for p in block.branch.parameters()}
        active = {id(p) for block in self.blocks() for p in block.active_branch().parameters()}
        return [p for p in self.parameters() if id(p) not in branches or id(p) in active]

    def run_counted(self) -> None:
        """Run the part of the network whose MACs are counted, on one image of ``input_size``."""
        self(torch.empty(1, *self.input_size, device=next(self.parameters()).device))

    @classmethod
    def build(cls, choices: Mapping[str, str], **space_args: Any) -> "BlockSpace":
        """A network with ``choices`` (canonical names by label), weights as the constructor draws them."""
        with model_context(dict(choices)):
            return cls(**space_args)

    @classmethod
    def cost_table(cls, **space_args: Any) -> CostTable:
        """Costs of every candidate of every block, without allocating the network."""
        with torch.device("meta"):
            space = cls(**space_args)
        return cost_table(space, space.blocks(), space.run_counted)


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


def label(index: int) -> str:
    """Label of the block at ``index`` in forward order."""
    return f"block_{index:02d}"


def initialise(network: nn.Module) -> None:
    """Fresh weights: convolutions normal with std sqrt(2 / (k^2 C_out)), C_out not divided by the groups; biases 0.

    BN keeps scale 1 and shift 0; a linear layer keeps PyTorch's uniform weights. As in the paper's authors' networks.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # there nothing is drawn, slowly
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw weights, on the CPU, from ``seed`` and leave the global generators as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set a GPU's, too
        yield

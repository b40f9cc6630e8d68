"""The base class of the search spaces: a network whose blocks are shells, one super-network for all architectures."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.space import model_context
from torch import nn

from nni_blockswap.blocks.pricing import price
from nni_blockswap.blocks.shells import Block
from nni_blockswap.cost.table import Table


def is_of_detector(answer: Any) -> bool:
    """Whether it is what a detector gives in evaluation mode, a mapping an image, and not a list of heads' outputs."""
    return isinstance(answer, list) and all(isinstance(one, Mapping) for one in answer)


TOLD = "_nni_blockswap"
"""Attribute of a network of one's own: all that a space has told of it, by name."""


def tell(network: nn.Module, **told: Any) -> None:
    """Give ``network`` attributes, but where it has one of the same name that means something else."""
    earlier = vars(network).get(TOLD, {})
    for name, value in told.items():
        if not hasattr(network, name) or (name in earlier and vars(network).get(name) is earlier[name]):
            vars(network)[name] = value
    vars(network)[TOLD] = told


def places(network: nn.Module) -> dict[str, str]:
    """Paths of what stands, or would stand, at the sites of a user's network that a space has built, by block."""
    return dict(vars(network)[TOLD]["places"])


def input_size_of(network: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of an image for a space, or for what a space has built."""
    told = vars(network).get(TOLD)
    return cast(tuple[int, int, int], network.input_size if told is None else told["input_size"])


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

    def redraw(self) -> None:
        """Fresh weights, where the constructor has not drawn them."""

    def run_counted(self, batch_size: int = 1) -> None:
        """Run the part of the network whose MACs are counted, on empty images of ``input_size``."""
        self(torch.zeros(batch_size, *self.input_size, device=next(self.parameters()).device))

    @classmethod
    def build(cls, choices: Mapping[str, str], **space_args: Any) -> nn.Module:
        """A network with ``choices`` (canonical names by label), weights as the constructor draws them."""
        with model_context(dict(choices)):
            network: nn.Module = cls(**space_args)
        return network

    @classmethod
    def interface(cls, choices: Mapping[str, str], **space_args: Any) -> tuple[tuple[int, ...], Any]:
        """Channels, height and width of an image, and what the network with ``choices`` gives for it; a detector []."""
        with torch.device("meta"), torch.no_grad():
            network: Any = cls.build(choices, **space_args).eval()
            size = tuple(network.input_size)
            return size, [] if cls.detects else network(torch.empty(1, *size))

    @classmethod
    def cost_table(cls, resources: Sequence[str] = ("params", "macs"), **space_args: Any) -> Table:
        """What every candidate of every block takes of ``resources``, without allocating the network."""
        with torch.device("meta"):
            space = cls(**space_args).eval()  # in training BN refuses a single value a channel
        return price(space, space.blocks(), space.run_counted, resources, partial(cls, **space_args))

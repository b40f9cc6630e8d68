"""The teacher of a library: the space's network with ``S`` in every block, its blocks in sight."""

from collections.abc import Mapping
from typing import Any

import torch

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.network import swap_blocks
from nni_blockswap.blocks.space import BlockSpace, input_size_of
from nni_blockswap.cost.table import ORIGINAL
from nni_blockswap.errors import CheckpointError, SpaceError
from nni_blockswap.library import store
from nni_blockswap.training import sources
from nni_blockswap.training.unwrapping import load_weights, weights_of


def original_of(space: str, space_args: Mapping[str, Any]) -> Architecture:
    """The architecture with ``S`` in every block. Raises SpaceError where a block does not offer it."""
    original = Architecture.original(space, space_args)
    lacking = [label for label, choice in original.choices.items() if choice != ORIGINAL]
    if lacking:
        raise SpaceError(f"{lacking[0]} of {space} has no candidate {ORIGINAL} that others could learn from.")
    return original


def load_teacher(space: str, space_args: Mapping[str, Any], source: str | None) -> tuple[BlockSpace, str]:
    """The teacher in evaluation mode, and the digest of its weights.

    Args:
        space, space_args: of the search space.
        source: a checkpoint of the network, or a name as in ``training.sources``; None and "original" take the weights
            that a network of the user's own comes with.

    Raises:
        CheckpointError: it cannot be read, or does not fit; or nobody says where weights are.
        SpaceError: a block of the space does not offer ``S``.
    """
    network: Any = original_of(space, space_args).build()
    if source is not None and source != sources.ORIGINAL:
        load_weights(network, weights_of(sources.read_source(source), network.state_dict().keys()), source)
    elif isinstance(network, BlockSpace):
        raise CheckpointError("a library learns from a trained teacher; name its checkpoint.")
    network.eval().requires_grad_(False)
    digest = store.digest(network.state_dict())
    return (network if isinstance(network, BlockSpace) else _in_shells(network, space_args)), digest


def _in_shells(network: Any, space_args: Mapping[str, Any]) -> BlockSpace:
    """A user's own network as the super-network over it, which runs the originals."""
    example = torch.zeros(1, *input_size_of(network))
    patterns = {name: space_args.get(name) for name in ("include", "exclude")}
    space = swap_blocks(network, example, **patterns, extra=space_args.get("extra", ()))
    space.select({block.label: ORIGINAL for block in space.blocks()})
    shelled: BlockSpace = space.eval().requires_grad_(False)
    return shelled

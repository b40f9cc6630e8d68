"""The teacher of a library: the space's network with ``S`` in every block, its blocks in sight."""

from collections.abc import Mapping
from typing import Any

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.cost.table import ORIGINAL
from nni_blockswap.errors import CheckpointError, SpaceError
from nni_blockswap.library import store
from nni_blockswap.networks import check_tensors_alone, hold_the_same
from nni_blockswap.spaces import load_space
from nni_blockswap.training import sources
from nni_blockswap.training.unwrapping import load_weights


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
            that the network comes with.

    Raises:
        CheckpointError: it cannot be read, or does not fit; or the network comes with other weights each time.
        SpaceError: a block of the space does not offer ``S``, or nobody can put the blocks of what it builds in sight.
        ConfigError: the network keeps something that is no tensor.
    """
    original = original_of(space, space_args)
    network: Any = original.build()
    kind: Any = load_space(space)
    is_plain = not isinstance(network, BlockSpace)  # a user's own
    if is_plain and not hasattr(kind, "in_shells"):
        raise SpaceError(
            f"{space} builds a plain {type(network).__name__}, in which a library finds no blocks to learn from; "
            "let its build return the space itself, or name the network as a model."
        )
    check_tensors_alone(network, "the network", "a library tells its teacher by tensors alone")
    if source is not None and source != sources.ORIGINAL:
        load_weights(network, sources.read_source(source), source)
    elif not hold_the_same(network, original.build()):
        raise CheckpointError(
            "a library learns from a trained teacher, and this network comes with other weights each time that it is "
            "made; let its function load trained ones, or name its checkpoint, --teacher FILE."
        )
    network.eval().requires_grad_(False)
    digest = store.digest(network.state_dict())
    if is_plain:
        network = kind.in_shells(network, original.choices, **original.space_args).eval().requires_grad_(False)
    return network, digest

"""Students put together from a library: what is not swapped comes from the teacher, the rest from the library."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.space import BlockSpace, places
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.cost.table import ORIGINAL
from nni_blockswap.library import store
from nni_blockswap.library.bench import go_on
from nni_blockswap.library.library import Library
from nni_blockswap.training.unwrapping import load_weights, weights_of


def assemble(architecture: Architecture, teacher: Mapping[str, Any], library: Library) -> nn.Module:
    """The network of ``architecture`` whose blocks do what they learned, in evaluation mode.

    Args:
        architecture: of the library's space.
        teacher: weights of the teacher that the library learned from, its state_dict or a checkpoint that holds it.
        library: of the candidates that ``architecture`` names.

    Raises:
        StateError: the library is of another space or teacher, or of candidates that were other modules.
        CheckpointError: the teacher's weights do not fit the space's original.
    """
    student = architecture.build()
    furnish(student, architecture, teacher, library)
    return student.eval()


@torch.no_grad()
def furnish(student: nn.Module, architecture: Architecture, teacher: Mapping[str, Any], library: Library) -> None:
    """Give ``student``, a network of ``architecture``, its weights and statistics, as ``assemble`` does."""
    library.check_space(architecture.space, architecture.space_args)
    original = weights_of(teacher, student.state_dict().keys())
    if store.digest(original) != library.about["teacher_digest"]:  # it may have other names or types
        original = _as_loaded(architecture, teacher)
        library.check_teacher(original)
    swapped = {block: branch for block, branch in branches(student, architecture).items()
               if architecture.choices[block] != ORIGINAL}  # fmt: skip
    replaced = {id(value) for branch in swapped.values() for value in branch.state_dict(keep_vars=True).values()}
    for name, value in student.state_dict(keep_vars=True).items():
        if id(value) not in replaced:
            value.copy_(original[name])
    for block, branch in swapped.items():
        name = architecture.choices[block]
        go_on(branch, library.weights(block, name), f"{name} of {block}", library.folder)


def _as_loaded(architecture: Architecture, teacher: Mapping[str, Any]) -> dict[str, Tensor]:
    """The teacher's weights as the space's original has them, by its names and in its types."""
    with seeded(0):
        original = architecture.teacher().build()
    load_weights(original, teacher, "the teacher")
    return original.state_dict()


def branches(student: nn.Module, architecture: Architecture) -> dict[str, nn.Module]:
    """The chosen branches of a built network, by block: of a user's own, those that were swapped."""
    if isinstance(student, BlockSpace):
        return {block.label: block.branch for block in student.blocks()}
    return {
        block: student.get_submodule(path)
        for block, path in places(student).items()
        if architecture.choices[block] != ORIGINAL
    }

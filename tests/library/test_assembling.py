"""Students put together from a library."""

from pathlib import Path

import pytest
import torch

from nni_blockswap import Architecture
from nni_blockswap.architecture import cost_table
from nni_blockswap.errors import StateError
from nni_blockswap.library.assembling import assemble
from nni_blockswap.library.library import Library
from nni_blockswap.library.teacher import load_teacher
from nni_blockswap.tasks import make_task
from tests.conftest import WRN
from tests.library.conftest import SPACE_ARGS, make_teacher


def test_all_originals_are_the_teacher_to_the_bit(library: Library, teacher: Path) -> None:
    state = torch.load(teacher, weights_only=True)
    student = assemble(Architecture.from_choices(WRN, ["S"] * 3, SPACE_ARGS), state, library)
    found = student.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    images, _ = make_task("digits", image_size=8).minibatch(16, seed=3)
    assert torch.equal(student(images), load_teacher(WRN, SPACE_ARGS, str(teacher))[0](images))


def test_each_block_gives_what_the_librarys_block_gives(library: Library, teacher: Path) -> None:
    state = torch.load(teacher, weights_only=True)
    table = cost_table(WRN, SPACE_ARGS)
    for choices in (["W(1/2)", "G(N/4)", "BG(2,4)"], ["B(2)", "S", "W(1/4)"]):
        student = assemble(Architecture.from_choices(WRN, choices, SPACE_ARGS), state, library)
        for block, name in zip(student.blocks(), choices, strict=True):
            x = torch.randn(4, block.site.in_channels, 8, 8)
            alone = block.site.build(name).eval()
            alone.load_state_dict(library.weights(block.label, name) if name != "S" else block.branch.state_dict())
            assert torch.equal(block.branch(x), alone(x))
        own = student.state_dict()
        rest = [name for name in own if ".branch." not in name]
        assert all(torch.equal(own[name], state[name]) for name in rest)
    assert len(table.labels) == 3


def test_a_copy_of_every_block_computes_what_the_teacher_does(library: Library, teacher: Path) -> None:
    state = torch.load(teacher, weights_only=True)
    student = assemble(Architecture.from_choices(WRN, ["COPY(1)"] * 3, SPACE_ARGS), state, library)
    images, _ = make_task("digits", image_size=8).minibatch(16, seed=3)
    assert torch.equal(student(images), load_teacher(WRN, SPACE_ARGS, str(teacher))[0](images))


def test_another_teacher_or_space_is_refused(library: Library, tmp_path: Path) -> None:
    other = torch.load(make_teacher(tmp_path / "other.pt", seed=1), weights_only=True)
    one = Architecture.from_choices(WRN, ["S"] * 3, SPACE_ARGS)
    with pytest.raises(StateError, match="learned from another teacher"):
        assemble(one, other, library)
    deeper = Architecture.from_choices(WRN, ["S"] * 6, {**SPACE_ARGS, "depth": 16})
    with pytest.raises(StateError, match=r"is of search_spaces.wide_resnet:WideResNetSpace with .*'depth': 10"):
        assemble(deeper, other, library)

"""Detectors and large classifiers: the same library, on networks whose blocks were somebody else's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import nni_blockswap as bs
from nni_blockswap import Architecture
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import CheckpointError, ConfigError, SpaceError
from nni_blockswap.library import store
from nni_blockswap.library.assembling import assemble
from nni_blockswap.library.building import build
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.library.teacher import load_teacher, original_of
from nni_blockswap.library.watching import watch
from nni_blockswap.spaces import NETWORK, complete_args, cost_table, named_arguments
from nni_blockswap.training import checkpoints
from search_spaces.wide_resnet import WideResNetSpace
from tests.conftest import SMALL
from tests.library.own import Listing, own

MASK = "search_spaces.mask_rcnn:MaskRCNNSpace"
RESNET = "search_spaces.resnet:ResNetSpace"


def teacher(space: str, space_args: dict[str, Any], path: Path) -> Path:
    torch.manual_seed(0)
    checkpoints.save(checkpoints.plain_state(original_of(space, space_args).build()), path)
    return path


def test_a_pass_ends_behind_the_last_block_that_is_watched(tmp_path: Path) -> None:
    space_args = {"depth": 18, "num_classes": 3, "min_size": 64, "max_size": 64}
    network, _ = load_teacher(MASK, space_args, str(teacher(MASK, space_args, tmp_path / "weights.pt")))
    network.rpn.forward = lambda *_: pytest.fail("the heads were run")
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
    blocks = network.blocks()
    looks = {block: lambda x, y, name=block.label: shapes.update({name: (x.shape, y.shape)}) for block in blocks[1:3]}
    watch(network, [torch.rand(3, 60, 64), torch.rand(3, 64, 64)], looks)
    assert shapes == {
        "block_01": (torch.Size([2, 64, 16, 16]),) * 2,
        "block_02": (torch.Size([2, 64, 16, 16]), torch.Size([2, 128, 8, 8])),
    }
    assert not any(block.branch._forward_hooks for block in blocks)


def test_a_teacher_may_have_torchvisions_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torchvision.models.resnet18().eval()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: original.state_dict())
    found, _ = load_teacher(RESNET, {"depth": 18, "image_size": 64}, "torchvision:resnet18")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(found(images), original(images))
    with pytest.raises(CheckpointError, match="torchvision has no weights called 'resnet19'"):
        load_teacher(RESNET, {"depth": 18, "image_size": 64}, "torchvision:resnet19")
    with pytest.raises(CheckpointError, match="name its checkpoint"):
        load_teacher(RESNET, {"depth": 18, "image_size": 64}, "original")  # it comes with none


class Trained(WideResNetSpace):
    """A space whose constructor takes weights that are there, here those of one seed."""

    def __init__(self, **arguments: Any) -> None:
        with seeded(7):
            super().__init__(**arguments)


def test_a_space_that_comes_with_its_weights_teaches_with_them() -> None:
    found, digest = load_teacher(f"{__name__}:Trained", SMALL, None)
    assert digest == store.digest(original_of(f"{__name__}:Trained", SMALL).build().state_dict())
    assert load_teacher(f"{__name__}:Trained", SMALL, "original")[1] == digest
    assert [block.label for block in found.blocks()] == ["block_00", "block_01", "block_02"]


OWN = {"input_size": [1, 8, 8], "extra": ["W(1/2)"]}


def test_a_teacher_of_ones_own_holds_its_originals_alone_and_the_blocks_of_the_space() -> None:
    arguments = {"model": "tests.library.own:own", **OWN}
    found, _ = load_teacher(NETWORK, arguments, None)
    assert sum(map(torch.numel, found.parameters())) == sum(map(torch.numel, own().parameters()))
    table = cost_table(NETWORK, arguments)
    assert tuple(block.label for block in found.blocks()) == table.labels
    assert tuple(block.names for block in found.blocks()) == table.candidates
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(found(images), own().eval()(images))
    assert not any(weight.requires_grad for weight in found.parameters())


def test_a_teacher_runs_on_what_swap_blocks_was_given() -> None:
    images = [torch.rand(1, 8, 8)] * 2
    space = bs.swap_blocks(Listing(), images)
    arguments = named_arguments(type(space), *space.trace_args, **space.trace_kwargs)
    found, _ = load_teacher(NETWORK, arguments, None)
    assert [block.label for block in found.blocks()] == [block.label for block in space.blocks()]
    assert found(images).shape == (2, 10)


def test_weights_of_five_dimensions_are_no_obstacle(tmp_path: Path) -> None:
    asked = LibrarySettings(space=NETWORK, space_args={"model": "tests.library.own:deep", **OWN}, data="digits",
                            data_options={"image_size": 8}, steps=1, batch_size=32, held_out=32,
                            device="cpu")  # fmt: skip
    assert build(asked, tmp_path).errors["block_00"]["W(1/2)"].value > 0


def test_what_is_kept_and_is_no_tensor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"keeps '_extra_state' \(get_extra_state\), and a library tells its"):
        load_teacher(NETWORK, {"model": "tests.library.own:Keeping", **OWN}, None)


class Plain(WideResNetSpace):
    """Its build gives something that is no space."""

    @classmethod
    def build(cls, choices: Mapping[str, str], **space_args: Any) -> nn.Module:
        return nn.Sequential(super().build(choices, **space_args))


def test_a_space_of_ones_own_that_builds_a_plain_module_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"^tests\.library\.test_networks:Plain builds a plain Sequential, in which a"):
        load_teacher("tests.library.test_networks:Plain", SMALL, None)


@pytest.mark.slow  # a hundred and forty candidates of a ResNet's size
def test_a_detectors_backbone(coco_folder: Path, tmp_path: Path) -> None:
    space_args = {"depth": 18, "num_classes": 91, "min_size": 64, "max_size": 96}
    source = teacher(MASK, space_args, tmp_path / "weights.pt")
    library = build(
        LibrarySettings(space=MASK, space_args=space_args, teacher=str(source), data="coco", data_root=str(coco_folder),
                        steps=1, batch_size=2, held_out=2, device="cpu", blocks_at_once=2),
        tmp_path / "lib",
    )  # fmt: skip
    assert len(library.errors) == 8
    state = torch.load(source, weights_only=True)
    student = assemble(Architecture.from_choices(MASK, ["S"] * 7 + ["B(4)"], space_args), state, library)
    kept = library.weights("block_07", "B(4)")
    assert all(torch.equal(value, kept[name]) for name, value in student.blocks()[7].branch.state_dict().items())
    assert complete_args(MASK, space_args) == library.about["space_args"]


@pytest.mark.slow  # likewise
def test_torchvisions_resnet(tmp_path: Path) -> None:
    from tests.library.own import Squares  # noqa: F401  # registers the task

    space_args = {"depth": 18, "num_classes": 10, "image_size": 64}
    source = teacher(RESNET, space_args, tmp_path / "weights.pt")
    library = build(
        LibrarySettings(space=RESNET, space_args=space_args, teacher=str(source), data="squares", steps=1, batch_size=4,
                        held_out=4, device="cpu", blocks_at_once=2),
        tmp_path / "lib",
    )  # fmt: skip
    state = torch.load(source, weights_only=True)
    same = assemble(Architecture.from_choices(RESNET, ["S"] * 8, space_args), state, library)
    assert all(torch.equal(value, state[name]) for name, value in same.state_dict().items())
    assert library.errors["block_07"]["S"].value == 0

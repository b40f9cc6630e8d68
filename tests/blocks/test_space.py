import copy

import pytest
import torch
from nni.common.serializer import is_traceable
from nni.nas.space import model_context

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.shells import probed
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import SpaceError
from search_spaces.wide_resnet import WideResNetSpace
from tests.conftest import SMALL, WRN


def test_a_layer_choice_for_each_block_with_stable_labels() -> None:
    space = WideResNetSpace(depth=16, width=1)
    choices = space.simplify()
    assert list(choices) == [f"block_{index:02d}" for index in range(6)]
    assert choices["block_03"].values == list(space.blocks()[3].names)


def test_nni_freezes_to_the_architecture() -> None:
    """NNI's own two ways of making a network of a sample agree with Architecture.build."""
    space = WideResNetSpace(**SMALL)
    sample = {"block_00": "G(4)", "block_01": "B(2)", "block_02": "S"}
    frozen = space.freeze(sample)
    with model_context(sample):
        fresh = WideResNetSpace(**SMALL)
    built = Architecture.from_choices(WRN, sample, SMALL).build()
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (frozen, fresh, built)]
    assert shapes[0] == shapes[1] == shapes[2]


def test_super_network_runs_what_is_selected() -> None:
    """A selection computes what a network of these choices with the same weights computes."""
    choices = {"block_00": "BG(2,4)", "block_01": "G(N/8)", "block_02": "S"}
    space = WideResNetSpace(**SMALL).train()
    built = Architecture.from_choices(WRN, choices, SMALL).build().train()
    weights, stages = space.state_dict(), {"stage1": "block_00", "stage2": "block_01", "stage3": "block_02"}
    for name, tensor in built.state_dict().items():
        stage = name.split(".")[0]
        tensor.copy_(weights[name.replace(".branch.", f".branch.{choices.get(stages.get(stage, ''))}.")])
    space.select(choices)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(space(x), built(x))
    assert {p.shape for p in space.active_parameters()} == {p.shape for p in built.parameters()}
    assert sum(p.numel() for p in space.active_parameters()) == sum(p.numel() for p in built.parameters())


def test_probes_see_the_last_convolution_before_the_sum_and_leave_no_hook() -> None:
    network = Architecture.from_choices(WRN, ["S", "G(2)", "B(2)"], SMALL).build().train().requires_grad_(False)
    seen = []
    handles = [b.branch[-1].register_forward_hook(lambda m, i, o: seen.append(o)) for b in network.blocks()]
    with probed(network.blocks()) as outputs:
        network(torch.randn(2, 1, 8, 8)).sum()
    for handle in handles:
        handle.remove()
    assert [id(tensor) for tensor in outputs] == [id(tensor) for tensor in seen]
    assert all(tensor.requires_grad for tensor in outputs)
    assert all(not block.probe._forward_hooks for block in network.blocks())


def test_unknown_candidates_cannot_be_selected() -> None:
    with pytest.raises(SpaceError, match=r"'BG\(4,2\)' is no candidate of block_00; it has S, B\(2\)"):
        WideResNetSpace(**SMALL).select({"block_00": "BG(4,2)", "block_01": "S", "block_02": "S"})


def test_seeded_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with seeded(5):
        one = WideResNetSpace(**SMALL)
    assert torch.equal(torch.rand(1), expected)
    with seeded(5):
        two = WideResNetSpace(**SMALL)
    with seeded(6):
        three = WideResNetSpace(**SMALL)
    assert torch.equal(one.conv.weight, two.conv.weight)
    assert not torch.equal(one.conv.weight, three.conv.weight)


def test_a_space_can_be_copied_and_traced_by_nni() -> None:
    space = WideResNetSpace(**SMALL)
    assert is_traceable(space)
    assert space.trace_kwargs == SMALL
    assert copy.deepcopy(space).blocks()[0].names == space.blocks()[0].names

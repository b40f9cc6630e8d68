"""The variants of Fisher potential that are set beside the paper's."""

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.rank_causes_variants import AfterTheSum, DividedByGroups, FanIn
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.tasks import make_task
from tests.conftest import SMALL


def drawn(space: type[BlockSpace]) -> BlockSpace:
    with seeded(0):
        network = space(**SMALL)
        network.redraw()
    network.select(dict(zip(("block_00", "block_01", "block_02"), ("G(4)", "B(2)", "BG(2,4)"), strict=True)))
    return network


@pytest.mark.parametrize(("space", "by_input"), [(DividedByGroups, False), (FanIn, True)])
def test_weights_have_the_spread_that_is_said(space: type[BlockSpace], by_input: bool) -> None:
    for module in drawn(space).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            channels = module.in_channels if by_input else module.out_channels
            expected = math.sqrt(2 * module.groups / (math.prod(module.kernel_size) * channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)


def test_the_probe_is_where_branch_and_shortcut_have_met() -> None:
    """The gradient at a sum is that of the branch's end and of the shortcut's; the last sum is seen from the head."""
    network = drawn(DividedByGroups).train()
    task = make_task("digits", image_size=8)
    batch = task.minibatch(8, seed=0)
    found = AfterTheSum().measure(network, task, batch)
    into_head: list[Tensor] = []
    handle = network.bn.register_forward_pre_hook(lambda module, inputs: into_head.append(inputs[0]))  # type: ignore[union-attr, operator]
    loss = task.loss(network, batch)
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, into_head)
    by_channel = (into_head[0] * gradient).sum((2, 3)).square().sum() / (2 * 8)
    assert found.blocks[-1] == pytest.approx(float(by_channel), rel=1e-4)
    assert len(found.blocks) == 3
    assert found.value == pytest.approx(sum(found.blocks))

"""Learned group convolutions: penalty and condensation on a case worked out by hand, and what is deployed."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nni_blockswap.errors import SpaceError, TrainingError
from nni_blockswap.training.averaging import averaged
from nni_blockswap.training.condensation import (
    Condensation,
    LearnedGroupConv,
    SelectedGroupConv,
    deploy,
    due,
    learned,
)

WEIGHTS = [
    #   input 0, 1, 2, 3
    [3.0, 0.0, 1.0, 2.0],  # group 0
    [0.5, 6.0, 0.0, 2.0],  # group 1
    [-4.0, 0.0, -1.0, 0.0],  # group 0
    [0.5, 8.0, 0.0, -2.0],  # group 1
]


def by_hand() -> LearnedGroupConv:
    convolution = LearnedGroupConv(4, 4, groups=2)
    convolution.conv.weight.data = torch.tensor(WEIGHTS)[:, :, None, None]
    return convolution


def test_penalty_worked_out_by_hand() -> None:
    # group 0: |(3, -4)| = 5, |(0, 0)| = 0, |(1, -1)| = sqrt 2, |(2, 0)| = 2; group 1: sqrt 0.5, 10, 0, sqrt 8
    expected = 5 + 2**0.5 + 2 + 0.5**0.5 + 10 + 8**0.5
    assert by_hand().penalty().item() == pytest.approx(expected, abs=1e-4)


def test_gradient_of_the_penalty_is_the_unit_vector_of_each_column_and_none_where_all_is_zero() -> None:
    convolution = by_hand()
    convolution.penalty().backward()
    gradient = convolution.conv.weight.grad[:, :, 0, 0]
    assert gradient[:, 0].tolist() == pytest.approx([0.6, 0.5**0.5, -0.8, 0.5**0.5])
    assert gradient[[0, 2], 1].tolist() == [0, 0]


def test_condensation_worked_out_by_hand() -> None:
    convolution = by_hand()
    assert convolution.condensations == 0
    convolution.condense()
    # |w| summed, group 0: 7, 0, 2, 2, of which 0 goes first and of the two 2s one; group 1: 1, 14, 0, 4
    assert convolution.condensations == 1
    assert convolution.mask[1].tolist() == convolution.mask[3].tolist() == [0, 1, 0, 1]
    assert convolution.mask[0].tolist() == convolution.mask[2].tolist()
    assert convolution.mask[0].sum() == 2
    assert convolution.mask[0, :2].tolist() == [1, 0]
    assert convolution.penalty().item() == pytest.approx(
        5 + (2**0.5 if convolution.mask[0, 2] else 2) + 10 + 8**0.5, abs=1e-4
    )


def test_what_was_dropped_stays_dropped_however_large_it_grows() -> None:
    torch.manual_seed(0)
    convolution = LearnedGroupConv(8, 8, groups=4)
    convolution.condense()
    first = convolution.mask.clone()
    convolution.conv.weight.data += 100 * ~first[:, :, None, None]
    convolution.condense()
    assert not (convolution.mask & ~first).any()
    assert convolution.mask.sum(1).tolist() == [4] * 8
    convolution.condense()
    assert (convolution.condensations, convolution.mask.sum(1).tolist()) == (3, [2] * 8)


def test_a_dropped_weight_has_no_gradient() -> None:
    torch.manual_seed(0)
    convolution = LearnedGroupConv(8, 8, groups=4)
    convolution.condense()
    (convolution(torch.randn(2, 8, 3, 3)).square().sum() + convolution.penalty()).backward()
    alive = convolution.conv.weight.grad[:, :, 0, 0] != 0
    assert torch.equal(alive, convolution.mask)


@pytest.mark.parametrize("training", [True, False])
def test_deployed_outputs_are_the_trained_ones(training: bool) -> None:
    torch.manual_seed(0)
    convolution = LearnedGroupConv(8, 12, groups=4).double()
    for values in (convolution.bn.weight, convolution.bn.bias, convolution.bn.running_mean):
        nn.init.normal_(values.data)
    for _ in range(3):
        convolution.condense()
    x = torch.randn(5, 8, 4, 4, dtype=torch.float64)
    deployed = convolution.train(training).deployed()
    assert deployed.training == training
    assert deployed.conv.weight.shape == (12, 2, 1, 1)
    torch.testing.assert_close(deployed(x.clone()), convolution(x.clone()))


def test_a_network_is_deployed_in_place() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(LearnedGroupConv(8, 8, groups=2)))
    network[1][0].condense()
    before = copy.deepcopy(network).eval()
    deploy(network)
    assert learned(network) == []
    assert isinstance(network[1][0], SelectedGroupConv)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(network.eval()(x), before(x))


def test_condensations_are_over_at_half_of_the_training() -> None:
    assert [due(percent / 100, groups=4) for percent in (0, 16, 17, 33, 34, 49, 50, 100)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [due(step / 6, groups=4) for step in range(7)] == [0, 1, 2, 3, 3, 3, 3]  # sixths are no binary fractions
    assert due(1.0, groups=1) == 0


def test_groups_must_divide_the_widths() -> None:
    with pytest.raises(SpaceError, match="4 learned groups do not fit a convolution from 10 to 8"):
        LearnedGroupConv(10, 8, groups=4)


def test_an_average_of_the_weights_has_the_masks_of_the_network() -> None:
    """Its own weights would drop other inputs."""
    torch.manual_seed(0)
    network = nn.Sequential(LearnedGroupConv(8, 8, groups=4))
    training = nn.Module()
    training.network, training.average = network, averaged(network, 0.99)
    for step in range(7):
        trainer = SimpleNamespace(global_step=step, estimated_stepping_batches=6)
        Condensation().on_train_batch_start(trainer, training, None, 0)
        nn.init.normal_(network[0].conv.weight)
        training.average.update_parameters(network)
    average = training.average.module
    assert network[0].condensations == 3
    assert torch.equal(average[0].mask, network[0].mask)
    x = torch.randn(2, 8, 3, 3)
    before = copy.deepcopy(average).eval()(x)
    deploy(average)
    torch.testing.assert_close(average.eval()(x), before)


def test_what_was_not_condensed_to_the_end_cannot_be_deployed() -> None:
    convolution = LearnedGroupConv(8, 8, groups=4)
    convolution.condense()
    with pytest.raises(TrainingError, match=r"3 times .* ended after 1"):
        convolution.deployed()

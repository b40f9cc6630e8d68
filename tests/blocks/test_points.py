"""Ends of stages, found by running a network once; it is left as it was."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.points import attention_points, equal_points, shared_points
from nni_blockswap.errors import ConfigError, SpaceError
from nni_blockswap.spaces import NETWORK
from search_spaces.resnet import ResNetSpace
from tests.conftest import SMALL, WRN

IMAGE = torch.zeros(1, 3, 64, 64)


class Wrapped(nn.Module):
    """Somebody's own module around a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.model(images)
        return found


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("resnet18", ("relu", "layer1", "layer2", "layer3", "layer4")),
        ("resnet50", ("relu", "layer1", "layer2", "layer3", "layer4")),
        ("vgg11_bn", ("features.2", "features.6", "features.13", "features.20", "features.27", "features")),
        ("inception_v3", ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")),  # pads little
        ("densenet121", ("features.relu0", *(f"features.denseblock{n}" for n in (1, 2, 3)), "features")),
        ("mobilenet_v2", ("features.1", "features.3", "features.6", "features.13", "features")),
        (
            "efficientnet_b0",
            ("features.1", "features.2", "features.3", "features.5", "features"),
        ),  # with pooling inside
    ],
)
def test_stages_of_known_networks(name: str, points: tuple[str, ...]) -> None:
    network = models.get_model(name, weights=None)
    image = torch.zeros(1, 3, 299, 299) if name == "inception_v3" else IMAGE
    assert attention_points(network, image) == points
    if name in ("resnet18", "vgg11_bn"):
        assert attention_points(Wrapped(network), IMAGE) == tuple(f"model.{point}" for point in points)


def test_a_wide_resnets_stages_are_its_own_though_the_next_block_normalises_first() -> None:
    found = attention_points(Architecture.from_choices(WRN, ["S"] * 3, SMALL).build(), torch.zeros(1, 1, 8, 8))
    assert found == ("stage1", "stage2", "relu")  # the last one goes on to the final ReLU


def test_what_ends_before_the_first_swapped_module_is_no_stage_to_imitate() -> None:
    network = models.get_model("resnet18", weights=None)
    stages = ("layer1", "layer2", "layer3", "layer4")
    assert attention_points(network, IMAGE, since="layer1.0.conv1") == stages  # not the stem's relu
    assert attention_points(network, IMAGE, since="layer2.0.conv1") == stages[1:]
    assert attention_points(Wrapped(network), IMAGE, since="model.layer1.0.conv1") == tuple(
        f"model.{one}" for one in stages
    )


def test_the_stages_of_a_network_of_ones_own_are_those_of_the_papers_space() -> None:
    given = {"model": "torchvision.models:resnet18", "model_args": {"num_classes": 10}, "input_size": [3, 64, 64]}
    own = Architecture.from_choices(NETWORK, ["G(4)"] * 8, given)
    student, teacher = own.build(), own.teacher().build()
    assert student.attention_points == teacher.attention_points == ResNetSpace.attention_points
    assert shared_points(student, teacher, IMAGE, student.attention_points) == student.attention_points
    assert shared_points(student, teacher, IMAGE) == ("relu", *student.attention_points)  # the stem, if nobody knows


def test_maps_of_one_position_and_modules_that_run_twice_are_no_points() -> None:
    twice = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), twice, nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), twice, nn.AvgPool2d(28))
    assert attention_points(network, IMAGE) == ("0", "3")


def test_the_network_is_left_as_it_was() -> None:
    network = models.resnet18(weights=None).train()
    network.layer2.eval()
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    attention_points(network, torch.ones(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())  # BN statistics, too
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_points_that_both_have_are_those_of_equal_height_and_width() -> None:
    def net(width: int, stride: int) -> nn.Sequential:
        last = nn.Conv2d(width, 8, 3, stride=stride, padding=1)
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.MaxPool2d(2), last, nn.Conv2d(8, 8, 3, stride=2))

    teacher, narrow, coarse = net(8, 1), net(4, 1), net(8, 2)
    assert attention_points(teacher, IMAGE) == ("0", "2", "3")
    assert shared_points(narrow, teacher, IMAGE) == ("0", "2", "3")
    assert shared_points(coarse, teacher, IMAGE) == ("0",)
    assert equal_points(narrow, teacher, ("0", "2", "3"), IMAGE) == ("2", "3")


def test_networks_without_a_common_point_are_refused() -> None:
    teacher, student = (nn.Sequential(OrderedDict({name: nn.Conv2d(3, 4, 3)})) for name in ("conv", "layer"))
    wide = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 3)))
    with pytest.raises(ConfigError, match=r"no module of the same name .*; name some as attention points, or set beta"):
        shared_points(student, teacher, IMAGE)
    assert shared_points(wide, teacher, IMAGE) == ("conv",)
    with pytest.raises(ConfigError, match="activations of one shape, and none of conv is such a place"):
        equal_points(wide, teacher, ("conv",), IMAGE)
    with pytest.raises(SpaceError, match="no module 'stage9'"):
        equal_points(wide, teacher, ("stage9",), IMAGE)

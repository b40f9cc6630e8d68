"""ResNetSpace: torchvision's network to the bit, published counts, costs equal to built networks."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from nni.nas.space import model_context
from torch import nn

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.capture import captured
from nni_blockswap.blocks.substitutes.paper import PUBLISHED_EXTRA
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import SpaceError
from nni_blockswap.spaces import cost_table
from search_spaces.resnet import ResNetSpace
from tests.cost.test_table import count_macs, count_params

SPACE = "search_spaces.resnet:ResNetSpace"
PUBLISHED = (
    "G(8) BG(2,M/2) BG(2,M/2) S G(2) G(N/2) B(2) G(16) BG(2,16) BG(2,M/16) G(N/4) BG(2,2) BG(2,8) BG(2,M/2) G(N/4) "
    "BG(2,4)"
)
SMALL = {"num_classes": 10, "image_size": 64}


def all_standard(depth: int, **space_args: object) -> Architecture:
    return Architecture.from_choices(SPACE, ["S"] * {18: 8, 34: 16}[depth], {"depth": depth, **space_args})


@pytest.mark.parametrize(
    ("weights", "depth"),
    [(torchvision.models.ResNet18_Weights.IMAGENET1K_V1, 18), (torchvision.models.ResNet34_Weights.IMAGENET1K_V1, 34)],
)
def test_costs_are_those_torchvision_publishes(weights: torchvision.models.WeightsEnum, depth: int) -> None:
    teacher = all_standard(depth)
    assert teacher.params == weights.meta["num_params"]
    assert round(teacher.macs / 1e9, 3) == weights.meta["_ops"]


def test_published_network_of_the_paper() -> None:
    student = Architecture.from_choices(SPACE, PUBLISHED.split())
    assert round(student.params / 1e6, 2) == 3.08
    assert round(student.macs / 1e9, 2) == 0.81
    assert sum(parameter.numel() for parameter in student.build().parameters()) == student.params


@pytest.mark.parametrize("depth", [18, 34])
def test_outputs_equal_torchvisions_to_the_bit(depth: int) -> None:
    original = getattr(torchvision.models, f"resnet{depth}")(num_classes=10)
    for module in original.modules():  # statistics and scales that are not the initial ones
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    network = all_standard(depth, **SMALL).build()
    network.load_state_dict(original.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for mode in (False, True, False):  # the last with the statistics that training left
        assert torch.equal(network.train(mode)(images), original.train(mode)(images))


def test_own_weights_load_and_originals_do_not_load_into_substitutes() -> None:
    standard = all_standard(18, **SMALL).build()
    copy.deepcopy(standard).load_state_dict(standard.state_dict(), strict=True)
    substituted = Architecture.from_choices(SPACE, ["G(8)"] * 8, {"depth": 18, **SMALL}).build()
    substituted.load_state_dict(substituted.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match=r"layer1\.0\.conv1\.weight"):
        substituted.load_state_dict(torchvision.models.resnet18(num_classes=10).state_dict(), strict=True)


def test_loading_leaves_the_checkpoint_as_it_was() -> None:
    checkpoint = torchvision.models.resnet18(num_classes=10).state_dict()
    before = list(checkpoint)
    all_standard(18, **SMALL).build().load_state_dict(checkpoint)
    assert list(checkpoint) == before


@pytest.mark.parametrize("depth", [18, 34])
def test_table_equals_built_networks(depth: int) -> None:
    """Parameters and MACs of random architectures, counted on the network itself with hooks on its layers."""
    space_args = {"depth": depth, **SMALL, "extra": list(PUBLISHED_EXTRA)}
    table = cost_table(SPACE, space_args)
    draw = np.random.default_rng(depth)
    for _ in range(12):
        choices = table.names(tuple(draw.integers(len(names)) for names in table.candidates))
        architecture = Architecture.from_choices(SPACE, choices, space_args)
        with torch.device("meta"):
            network = architecture.build()
        assert architecture.params == sum(parameter.numel() for parameter in network.parameters())
        assert architecture.macs == counted_macs(network, (3, 64, 64))


def counted_macs(network: nn.Module, size: tuple[int, int, int]) -> int:
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
            total += output[0].numel() * kernel
        elif isinstance(module, nn.Linear):
            total += module.in_features * module.out_features

    for module in network.modules():
        module.register_forward_hook(count)
    network(torch.empty(1, *size, device="meta"))
    return total


def test_labels_run_in_forward_order_and_are_the_spaces_choices() -> None:
    with torch.device("meta"):
        space = ResNetSpace(depth=34, num_classes=10)
    order: list[str] = []
    for block in space.blocks():
        block.register_forward_pre_hook(lambda module, _: order.append(module.label))
    space(torch.empty(1, 3, 64, 64, device="meta"))
    assert order == [f"block_{index:02d}" for index in range(16)]
    assert list(space.simplify()) == order


def test_attention_is_taken_after_the_relu_that_ends_each_stage() -> None:
    network = all_standard(18, **SMALL).build()
    with captured(network, network.attention_points) as activations, torch.no_grad():
        network(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    shapes = [(2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4), (2, 512, 2, 2)]  # He et al., table 1, at 64x64
    assert [tuple(activation.shape) for activation in activations.values()] == shapes
    assert all(activation.min() == 0 < activation.max() for activation in activations.values())


def test_probe_is_the_last_convolutions_output() -> None:
    network = Architecture.from_choices(SPACE, ["BG(2,4)"] * 8, {"depth": 18, **SMALL}).build()
    seen: dict[str, torch.Tensor] = {}
    block = network.get_submodule("layer2.0")
    block.get_submodule("branch.conv3").register_forward_hook(lambda _, __, output: seen.update(conv=output))
    block.get_submodule("probe").register_forward_hook(lambda _, __, output: seen.update(probe=output))
    block.get_submodule("bn2").register_forward_pre_hook(lambda _, inputs: seen.update(bn=inputs[0]))
    network(torch.randn(2, 3, 64, 64))
    assert seen["conv"] is seen["probe"] is seen["bn"]


def test_selected_super_network_equals_the_frozen_one() -> None:
    """One set of weights, a substitute of each kind: the super-network runs what the frozen network runs."""
    choices = dict(
        zip(
            [f"block_{index:02d}" for index in range(8)],
            ["S", "B(2)", "G(N/8)", "BG(2,8)", "G(16)", "B(4)", "BG(2,2)", "S"],
            strict=True,
        )
    )
    space = ResNetSpace(depth=18, num_classes=10).eval()
    space.select(choices)
    with model_context(choices):
        network = ResNetSpace(depth=18, num_classes=10).eval()
    weights = {
        key.replace(f"branch.{choices[block.label]}.", "branch."): tensor
        for path, block in space.named_modules()
        if hasattr(block, "label")
        for key, tensor in space.state_dict().items()
        if key.startswith(f"{path}.branch.{choices[block.label]}.")
    }
    shared = {key: tensor for key, tensor in space.state_dict().items() if ".branch." not in key}
    network.load_state_dict(weights | shared, strict=True)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(space(images), network(images))


def test_fresh_weights_follow_the_papers_rule_and_the_seed() -> None:
    with seeded(3):
        network = Architecture.from_choices(SPACE, ["G(16)"] * 8, {"depth": 18, **SMALL}).build()
    with seeded(3):
        again = Architecture.from_choices(SPACE, ["G(16)"] * 8, {"depth": 18, **SMALL}).build()
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True))
    grouped = network.get_parameter("layer4.1.branch.conv1.weight")  # (512, 32, 3, 3)
    assert grouped.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.02)


def test_unknown_depth() -> None:
    with pytest.raises(SpaceError, match="18 or 34, not 50"):
        ResNetSpace(depth=50)


def test_images_that_end_in_a_single_position_can_be_priced() -> None:
    original = Architecture.from_choices(SPACE, ["S"] * 8, {"depth": 18, "num_classes": 10, "image_size": 32})
    built = original.build()
    assert original.params == count_params(built) == 11_181_642  # torchvision's ResNet-18 of ten classes
    assert original.macs == count_macs(built, torch.zeros(1, 3, 32, 32))

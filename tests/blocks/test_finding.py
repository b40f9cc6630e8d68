import copy
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap.blocks.finding import find
from nni_blockswap.blocks.found import Findings
from nni_blockswap.errors import SpaceError
from tests.blocks.networks import (
    IMAGE,
    NETWORKS,
    OWN,
    FunctionalBlock,
    Nested,
    Network,
    PreActivation,
    Sum,
    Twice,
    conv,
    paths,
    sequential,
    stays,
)

# --- what is found --------------------------------------------------------------------------------------------------


@cache
def look(name: str) -> tuple[Findings | str, list[str]]:
    """What is found in a network, or why it is refused; and the paths of its convolutions."""
    network = next(network for network in NETWORKS + OWN if str(network) == name)
    model = network.make()
    convolutions = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    try:
        return find(model, network.arguments()), convolutions
    except SpaceError as error:
        return str(error), convolutions


def found_in(name: str) -> Findings:
    found, _ = look(name)
    assert isinstance(found, Findings)
    return found


@pytest.mark.parametrize("network", NETWORKS + OWN, ids=str)
def test_every_convolution_is_in_one_site_or_stays_for_a_reason(network: Network) -> None:
    found, convolutions = look(str(network))
    if isinstance(found, str):
        assert not network.sites
        assert found.startswith("no convolution of ")
        assert sum(int(count) for count in re.findall(r"\((\d+), as", found)) == len(convolutions)
        return
    assert Counter(site.kind for site in found.sites) == network.sites
    parts = [part for site in found.sites for part in site.parts]
    for path in convolutions:
        assert sum(path == part or path.startswith(f"{part}.") for part in parts) + (path in stays(found)) == 1


def test_basic_blocks() -> None:
    found = found_in("resnet18")
    assert paths(found) == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    site = found.sites[2]
    assert site.parts == ("layer2.0.conv1", "layer2.0.bn1", "layer2.0.relu", "layer2.0.conv2")
    assert (site.shared, site.norm, site.activation) == (("layer2.0.relu",), "layer2.0.bn1", "layer2.0.relu")
    assert (site.in_shape, site.out_shape) == ((64, 16, 16), (128, 8, 8))
    assert (site.kernel, site.stride, site.padding, site.dilation, site.bias) == ((3, 3), (2, 2), (1, 1), (1, 1), False)
    assert stays(found)["layer2.0.downsample.0"] == "1x1 convolution"
    assert stays(found)["conv1"] == "the stem"


def test_bottlenecks() -> None:
    blocks = {1: 3, 2: 4, 3: 6, 4: 3}
    expected = [f"layer{stage}.{block}.conv2" for stage, count in blocks.items() for block in range(count)]
    assert paths(found_in("resnet50")) == expected


def test_plain_convolutions() -> None:
    assert paths(found_in("vgg11_bn")) == [f"features.{index}" for index in (4, 8, 11, 15, 18, 22, 25)]


def test_inverted_residuals_and_what_stands_around_them() -> None:
    found = found_in("mobilenet_v2")
    assert paths(found) == [f"features.{index}" for index in range(2, 18)]
    block = "features.2.conv"
    assert found.sites[0].parts == (*(f"{block}.{i}.{j}" for i in (0, 1) for j in (0, 1, 2)), f"{block}.2")
    assert (found.sites[0].middle_channels, found.sites[0].stride) == (96, (2, 2))
    assert (found.sites[0].in_channels, found.sites[0].out_channels) == (16, 24)
    assert stays(found)["features.1.conv.0.0"] == "depthwise: groups = channels"
    assert "features.4.block.2" in found_in("mobilenet_v3_small").sites[2].parts  # squeeze and excitation, as a whole


def test_dilated_heads_and_pyramids() -> None:
    found = {site.path: site for site in found_in("deeplabv3_resnet50").sites}
    assert [found[f"classifier.0.convs.{index}.0"].dilation for index in (1, 2, 3)] == [(12, 12), (24, 24), (36, 36)]
    detector = found_in("fasterrcnn_resnet50_fpn")
    assert [f"backbone.fpn.layer_blocks.{level}.0" for level in (3, 2, 1, 0)] == paths(detector)[16:]
    assert detector.sites[-1].norm is None
    assert stays(detector)["rpn.head.conv.0.0"] == "used 5 times in one forward pass"


def test_weight_standardised_convolutions_are_sites() -> None:
    assert paths(found_in("resnetv2_50x1_bit"))[0] == "stages.0.blocks.0.conv2"


def test_activations_inside_normalisations() -> None:
    site = found_in("mobilenetv3_small_100").sites[0]
    assert (site.norm, site.activation) == ("blocks.1.0.bn1", None)


def test_functions_between_convolutions() -> None:
    found = find(Nested(), IMAGE)
    assert paths(found) == ["body.low.0", "body.low.1", "body.high.0.0"]
    first = "body.low.0.first", "body.low.0.norm"
    assert found.sites[0].steps == (*first, "LeakyReLU(negative_slope=0.2)", "Dropout(p=0.5)", "body.low.0.second")
    assert found.sites[0].parts == (*first, "body.low.0.second")
    assert (found.sites[0].activation, found.sites[0].padding_mode) == ("LeakyReLU(negative_slope=0.2)", "reflect")


def test_uses_that_stand_against_a_swap() -> None:
    found = find(Twice(), IMAGE)
    assert paths(found) == ["last"]
    assert (found.sites[0].kernel, found.sites[0].stride, found.sites[0].padding) == ((5, 5), (2, 1), (2, 4))
    assert stays(found) == {
        "stem": "the stem",
        "twice": "used 2 times in one forward pass",
        "one": "its weights are shared with 'other'",
        "other": "its weights are shared with 'one'",
        "never": "not reached by the forward pass",
    }


class FirstPass(nn.Module):
    """Shifts and scales by what the first batch that it sees has, and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(1, 8, 1, 1)), nn.Parameter(torch.ones(1, 8, 1, 1))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.passes == 0:
            with torch.no_grad():
                self.shift.copy_(x.mean((0, 2, 3), keepdim=True))
                self.scale.copy_(x.std((0, 2, 3), keepdim=True))
        self.passes += 1
        return (x - self.shift) / self.scale * (1 + 1 / self.passes)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.norm(self.first(x))))


def test_a_network_that_its_first_pass_changes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), FirstPass(), Residual(8))
    assert paths(find(network, IMAGE)) == ["2"]


def test_blocks_that_their_network_runs_itself() -> None:
    found = find(PreActivation(), IMAGE)
    assert paths(found) == ["blocks.0", "blocks.1"]
    assert found.sites[0].parts == ("blocks.0.conv1", "blocks.0.bn2", "relu", "blocks.0.conv2")
    assert found.sites[0].shared == ("relu",)


def test_a_network_of_sequences_alone() -> None:
    found = find(sequential(), IMAGE)
    assert [(site.path, site.padding, site.norm, site.activation) for site in found.sites] == [
        ("2.0", "same", "2.1", "2.2"),
        ("3", (1, 1), "2.1", "2.2"),
    ]


def test_the_table_that_a_person_reads() -> None:
    assert str(find(Sum(conv(), nn.ReLU(), conv(), conv(kernel=1), conv(kernel=1)), IMAGE)).splitlines() == [
        "   site  kind  in       out      kernel  stride",
        "0  f.0   conv  8x16x16  8x16x16  3x3     1",
        "1  f.2   conv  8x16x16  8x16x16  3x3     1",
        "",
        "2 sites.",
        "",
        "Stays:",
        "  the stem: stem",
        "  1x1 convolution (2): f.3, f.4",
    ]


# --- what is left alone, and bad input ------------------------------------------------------------------------------


def contents(network: nn.Module) -> tuple[Any, ...]:
    """All that finding could change: modules, their modes, hooks, attributes, tensors, and how often these changed."""
    modules = {
        path: (
            id(module),
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            set(vars(module)),
        )
        for path, module in network.named_modules()
    }
    state = network.state_dict(keep_vars=True)
    return modules, {name: (id(tensor), tensor._version, tensor.tolist()) for name, tensor in state.items()}


def test_neither_network_nor_input_is_changed() -> None:
    network, image = PreActivation(), IMAGE.clone()
    network.blocks[0].eval()
    network.stem.register_forward_hook(lambda *_: None)
    before = contents(network)
    find(network, image)
    assert contents(network) == before
    assert torch.equal(image, IMAGE)


def test_finding_again_finds_the_same() -> None:
    network = Nested()
    assert find(network, IMAGE) == find(copy.deepcopy(network), IMAGE)


def nan() -> nn.Module:
    network = sequential()
    network[3].weight.data[0, 0, 0, 0] = torch.nan
    return network


def statistics_of_nan() -> nn.Module:
    network = sequential()
    network[2][1].running_var[0] = torch.nan
    return network


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv(3), conv()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.last(self.stem(x) * scale)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: nn.Linear(3, 3), {}, "Linear has no convolution, so that there is nothing to swap."),
        (lambda: nn.Sequential(conv(3)), {}, r"no convolution of Sequential can be swapped: the stem \(1, as 0\)."),
        (nan, {}, "'3.weight' holds numbers that are not finite; give a network with sound weights."),
        (statistics_of_nan, {}, r"'[\d.]+\.running_var' holds NaN; give a network with sound statistics."),
        (lambda: sequential().double(), {}, "'0.weight' is torch.float64; give the network in float32: model.float"),
        (lambda: torch.jit.script(sequential()), {}, "a ScriptModule cannot be changed; give the network that it was"),
        (lambda: nn.Sequential(conv(4)), {}, "Sequential does not run on the example input: Given groups=1, weight of"),
        (
            Pair,
            {},
            "Pair does not run on the example input: .*missing 1 required .*; give all that its forward takes, as",
        ),
        (sequential, {"exclude": "2.9.*"}, r"'2.9.\*' matches no module of the network; near it are 2."),
        (
            sequential,
            {"include": ["2.*", "classifier"]},
            "'classifier' matches no module of the network; near it are 0",
        ),
        (lambda: sequential, {}, "a network is an nn.Module; this is a function."),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_bad_input(make: Callable[[], Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=f"^{message}") as caught:
        find(make(), IMAGE, **options)
    assert "\n" not in str(caught.value)


def test_several_arguments() -> None:
    assert paths(find(Pair(), (IMAGE, torch.ones(1)))) == ["last"]


def test_a_network_that_cannot_be_copied() -> None:
    network = sequential()
    network.kept = (number for number in range(3))
    with pytest.raises(SpaceError, match=r"^Sequential cannot be copied: cannot pickle 'generator' object"):
        find(network, IMAGE)
    network.kept = {"seen": [network[0].weight * 2]}  # as a forward pass leaves activations, no leaves
    assert len(find(network, IMAGE).sites) == 2
    network.kept["self"] = network.kept  # as a tree of settings knows its root
    assert len(find(network, IMAGE).sites) == 2


def test_a_network_whose_outputs_cannot_be_compared() -> None:
    class Sparse(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).to_sparse()

    assert len(find(Sparse(*sequential()), IMAGE).sites) == 2


def test_the_block_in_the_middle_of_a_network_can_be_looked_at_alone() -> None:
    block = nn.Sequential(conv(3), FunctionalBlock(8, 8))
    assert paths(find(block, IMAGE)) == ["1"]

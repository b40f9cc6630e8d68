"""Each reason for which a convolution stays, on a network of three."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nni_blockswap.blocks.finding import find
from nni_blockswap.errors import SpaceError
from tests.blocks.networks import IMAGE, Sum, conv, paths, stays


class OwnPadding(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (1, 1, 1, 1)))


class TwoTensors(nn.Conv2d):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


def quantised() -> nn.Module:
    layer = conv()
    layer.qconfig = torch.ao.quantization.default_qat_qconfig
    return torch.ao.nn.qat.Conv2d.from_float(layer)


def changed(**sizes: Any) -> nn.Module:
    """As a program changes the strides of a network that it has from elsewhere."""
    layer = conv()
    vars(layer).update(sizes)
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.ConvTranspose2d(8, 8, 3, padding=1), "transposed"),
        (lambda: conv(groups=2), "grouped already"),
        (lambda: conv(groups=8), "depthwise: groups = channels"),
        (lambda: conv(kernel=2, padding="same"), "2x2 convolution"),
        (lambda: nn.Conv2d(8, 8, (1, 7), padding="same"), "1x7 convolution"),
        (lambda: OwnPadding(8, 8, 3), "pads by rules of its own"),
        (lambda: nn.utils.parametrizations.spectral_norm(conv()), "its weight is computed from other parameters"),
        (lambda: nn.utils.parametrizations.weight_norm(conv()), "its weight is computed from other parameters"),
        (quantised, "quantised"),
        (lambda: changed(stride=2), "its stride is 2, no tuple"),
        (lambda: changed(dilation=[1, 1]), "its dilation is [1, 1], no tuple"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_reasons(make: Callable[[], nn.Module], reason: str) -> None:
    found = find(nn.Sequential(conv(3), make(), conv()), IMAGE)
    assert paths(found) == ["2"]
    assert stays(found)["1"] == reason


def test_a_stride_may_be_a_list() -> None:
    assert paths(find(nn.Sequential(conv(3), changed(stride=[2, 2]), conv()), IMAGE)) == ["1", "2"]


def test_a_convolution_of_several_tensors_stays() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.two, self.last = conv(3), TwoTensors(8, 8, 3), conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.two(self.stem(x))[0])

    assert stays(find(Network(), IMAGE))["two"] == "does not take one batch of images and give one"


def test_what_the_network_looks_into_or_holds_by_a_second_reference_stays() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.read, self.listed, self.free = conv(3), conv(), conv(), conv()
            self.hidden = [self.listed]

        def forward(self, x: Tensor) -> Tensor:
            x = self.read(self.stem(x)) * self.read.weight.mean()
            return self.free(self.hidden[0](x))

    found = find(Network(), IMAGE)
    assert paths(found) == ["free"]
    assert stays(found)["read"].startswith(
        "the network needs it as it is: 'Sequential' object has no attribute 'weight'"
    )
    assert stays(found)["listed"] == "the network does not run what stands in its place"


class Assigned(Sum):
    """Sets some of what comes from its first convolution, which no function is called for; or takes targets."""

    def __init__(self, runs_in_training: bool) -> None:
        super().__init__(conv(), conv())
        self.runs_in_training = runs_in_training

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.runs_in_training:
            raise ValueError("in training mode targets have to be given")
        x = self.stem(x)
        y = self.f[0](x)
        y[:, :4] = 0.5
        return x + self.f[1](y)


class TrainedOtherwise(Sum):
    """Reads a convolution's weight in training mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        first, x = self.f[0], self.stem(x)
        return self.f[1](functional.conv2d(x, first.weight * 2, padding=1) if self.training else first(x))


@pytest.mark.parametrize("runs_in_training", [True, False])
def test_a_branch_that_computes_otherwise_in_evaluation_mode_stays(runs_in_training: bool) -> None:
    """Where the network does not run in training mode, as a detector without targets, nobody had looked."""
    with pytest.raises(SpaceError, match=r"the network does more between the convolutions than can be seen \(2,"):
        find(Assigned(runs_in_training), IMAGE)


def test_a_single_convolution_is_tried_in_training_mode_too() -> None:
    """A network of single convolutions was not, and its students did not train."""
    found = find(TrainedOtherwise(conv(), conv()), IMAGE)
    assert paths(found) == ["f.1"]
    assert stays(found)["f.0"].startswith("the network needs it as it is in training mode: ")


def test_include_and_exclude() -> None:
    network = nn.Sequential(conv(3), nn.Sequential(conv(), conv()), nn.Sequential(conv()))
    assert paths(find(network, IMAGE)) == ["1.0", "1.1", "2.0"]
    assert paths(find(network, IMAGE, include="1")) == ["1.0", "1.1"]
    found = find(network, IMAGE, include=["1.*", "2"], exclude="*.0")
    assert paths(found) == ["1.1"]
    assert stays(found)["2.0"] == "excluded by '*.0'"
    assert stays(find(network, IMAGE, include="1"))["2.0"] == "not included"
    assert paths(find(Sum(conv(), nn.ReLU(), conv()), IMAGE, exclude="f.2")) == ["f.0"]  # half a branch is left

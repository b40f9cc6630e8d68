"""Which of an original's modules is the normalisation that a substitute takes over."""

import copy

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap.blocks.site import Site
from tests.blocks.networks import conv

SITE = Site(8, 8, middle_channels=16)
IMAGES = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))


class OfShape(nn.Module):
    """Normalises over the channels, its scale and its shift of a shape that multiplies maps as they are."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(shape)), nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) * self.weight + self.bias


class Excited(nn.Module):
    """Squeeze and excitation whose hidden layer of four has a normalisation, which is no map's."""

    def __init__(self) -> None:
        super().__init__()
        self.fall, self.norm, self.rise = nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.rise(self.norm(self.fall(x.mean((2, 3)))))[:, :, None, None].sigmoid()


def original(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(conv(8, 16), copy.deepcopy(nn.Sequential(*between)), nn.ReLU(), conv(16, 8)).eval()


def inherited(name: str, theirs: nn.Module) -> dict[str, Tensor]:
    """What a substitute, drawn from one seed, has taken over."""
    torch.manual_seed(1)
    branch = SITE.build(name)
    assert SITE.inherit(name, branch, theirs, IMAGES)
    return dict(branch.state_dict())


@pytest.mark.parametrize("norm", [OfShape(1, 16, 1, 1), OfShape(16, 1, 1), nn.LayerNorm([16, 6, 6])], ids=str)
@pytest.mark.parametrize("name", ["B(2)", "G(4)", "BG(2,2)", "MB(2)"])
def test_a_scale_that_is_no_number_a_channel_is_not_taken_over(name: str, norm: nn.Module) -> None:
    """A library with one of these candidates could not be built."""
    found, without = inherited(name, original(norm)), inherited(name, original())
    convolutions = [key for key in found if key.startswith("conv")]
    assert convolutions
    assert all(torch.equal(found[key], without[key]) for key in convolutions)


@pytest.mark.parametrize("name", ["B(2)", "G(4)", "MB(2)"])
def test_a_normalisation_of_another_width_is_passed_over(name: str) -> None:
    norm = nn.BatchNorm2d(16)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    found, alone = inherited(name, original(Excited(), norm)), inherited(name, original(norm))
    scale = "bn2.weight"
    assert torch.equal(found[scale], alone[scale])
    assert set(found[scale].tolist()) <= set(norm.weight.tolist())

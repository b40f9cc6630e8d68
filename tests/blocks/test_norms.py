from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

from nni_blockswap.blocks.finding import find
from nni_blockswap.blocks.network import swap_blocks
from nni_blockswap.blocks.norms import activation_like, norm_like
from tests.blocks.networks import conv

IMAGE = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def imitated(*layers: nn.Module) -> tuple[nn.Module | None, nn.Module]:
    """Of a convolution with ``layers`` behind it: its normalisation for 12 channels, and its activation."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), *layers)
    (site,) = find(network, IMAGE).sites
    norm = norm_like(network, site)
    return (norm(12) if norm else None), activation_like(network, site)


@pytest.mark.parametrize(
    ("original", "fresh"),
    [
        (nn.BatchNorm2d(8, eps=1e-3, momentum=0.2), nn.BatchNorm2d(12, eps=1e-3, momentum=0.2)),
        (nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(12, affine=False)),
        (nn.InstanceNorm2d(8), nn.InstanceNorm2d(12)),
        (nn.GroupNorm(4, 8), nn.GroupNorm(6, 12)),  # two channels a group
        (nn.GroupNorm(1, 8), nn.GroupNorm(1, 12)),  # eight do not divide twelve
        (FrozenBatchNorm2d(8, eps=1e-3), FrozenBatchNorm2d(12, eps=1e-3)),
    ],
)
def test_normalisations_of_another_width_with_fresh_weights(original: nn.Module, fresh: nn.Module) -> None:
    for tensor in original.state_dict().values():
        tensor.fill_(3)
    original.requires_grad_(False)  # as detectors keep the early ones
    norm, _ = imitated(original)
    assert str(norm) == str(fresh)
    assert all(parameter.requires_grad for parameter in norm.parameters())
    x = torch.randn(4, 12, 5, 5)
    for training in (True, False):
        assert torch.equal(norm.train(training)(x), fresh.train(training)(x))
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in norm.state_dict().items())


class Scale(nn.Module):
    """One number a channel, which is no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.reshape(1, -1, 1, 1)


class Own(nn.Module):
    """Normalises over the channels, with names of its own for scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels
        self.gamma = nn.Parameter(torch.full((channels,), 0.5))
        self.beta = nn.Parameter(torch.linspace(0, 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / centred.square().mean(1, keepdim=True).sqrt()
        return scaled * self.gamma.view(self.width, 1, 1) + self.beta.view(self.width, 1, 1)


def test_a_normalisation_with_names_of_its_own() -> None:
    """Its scale was 0 in every substitute, so that all images gave the same, and its width that of the original."""
    original = Own(8)
    norm, _ = imitated(original)
    assert torch.equal(norm.gamma, torch.full((12,), 0.5))
    torch.testing.assert_close(norm.beta, torch.ones(12))
    assert norm.gamma.requires_grad
    assert norm(torch.randn(2, 12, 5, 5)).std().item() == pytest.approx(0.5, rel=1e-2)
    assert original.beta.shape == (8,)


class Grouped(Own):
    """The same with as many groups as channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.groups = self.num_groups = 8


def test_a_number_of_groups_is_no_width() -> None:
    norm, _ = imitated(Grouped(8))
    assert (norm.width, norm.groups, norm.num_groups) == (12, 8, 8)


class Last(nn.LayerNorm):
    """Normalises channels that are the first dimension for all others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_what_is_a_normalisation_of_channels() -> None:
    assert imitated(Scale(), nn.LayerNorm(8))[0] is None  # over the width
    norm, _ = imitated(Last(8, eps=1e-3))
    assert (norm.normalized_shape, norm.eps) == ((12,), 1e-3)
    assert norm(torch.rand(2, 12, 5, 5)).shape == (2, 12, 5, 5)


class LastScale(Own):
    """Scales and shifts the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.beta


@pytest.mark.parametrize(
    "head",
    [
        [nn.Linear(8, 8), nn.BatchNorm1d(8)],
        [nn.Linear(8, 8), LastScale(8)],
        [nn.Unflatten(1, (8, 1, 1, 1)), nn.BatchNorm3d(8)],
    ],
)
def test_a_normalisation_of_something_else_than_maps_is_not_imitated(head: list[nn.Module]) -> None:
    """A substitute of a network without normalisation had that of its classifier, and did not run."""
    network = nn.Sequential(conv(3), conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)
    space = swap_blocks(network, IMAGE)
    assert [site.norm for site in space.findings.sites] == [None]
    assert space.blocks()[0].candidate("B(2)").bn1.weight.shape == (4,)
    for name in space.blocks()[0].names:
        space.select({"block_00": name})
        assert space(IMAGE).shape == network(IMAGE).shape


class Unsized(Own):
    """It has a torch norm's attribute for something else."""

    num_features = None


def test_what_a_normalisation_calls_its_channels_is_its_own_affair() -> None:
    network = nn.Sequential(conv(3), Unsized(8), conv(), Unsized(8), nn.ReLU())
    assert [site.norm for site in find(network, IMAGE).sites] == ["3"]


class Pooled(nn.Module):
    """An activation and more."""

    def __init__(self, more: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return self.more(functional.leaky_relu(x, 0.2))


@pytest.mark.parametrize("more", [lambda x: functional.max_pool2d(x, 2), lambda x: x.mean((2, 3))])
def test_of_a_module_that_does_more_the_activation_alone_is_imitated(more: Callable[[Tensor], Tensor]) -> None:
    """A substitute pooled between its convolutions, too."""
    assert str(imitated(Pooled(more))[1]) == "LeakyReLU(negative_slope=0.2)"
    assert isinstance(imitated(Pooled(torch.square))[1], Pooled)


def test_normalisations_with_an_activation_inside() -> None:
    layers = pytest.importorskip("timm.layers")
    norm, activation = imitated(layers.BatchNormAct2d(8, act_layer=nn.SiLU))
    x = torch.randn(4, 12, 5, 5)
    assert torch.equal(norm(x), nn.functional.silu(nn.BatchNorm2d(12)(x)))
    assert isinstance(activation, nn.Identity)


def test_activations() -> None:
    assert isinstance(imitated(nn.BatchNorm2d(8), nn.Hardswish())[1], nn.Hardswish)
    assert str(imitated(nn.LeakyReLU(0.3))[1]) == "LeakyReLU(negative_slope=0.3)"
    assert str(imitated(nn.PReLU(8))[1]) == "PReLU(num_parameters=1)"  # for any number of channels
    assert isinstance(imitated(nn.Sigmoid())[1], nn.ReLU)  # a gate; and nothing else anywhere

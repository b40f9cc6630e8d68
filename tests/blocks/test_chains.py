"""What makes a chain, on networks of a few convolutions; well-known networks are in ``test_finding``."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nni_blockswap.blocks.finding import find
from nni_blockswap.blocks.network import swap_blocks
from nni_blockswap.blocks.pricing import price
from tests.blocks.networks import IMAGE, Sum, conv, paths


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([conv(), nn.ReLU(), conv()], ["f"]),  # no normalisation
        ([conv(), nn.Sequential(nn.BatchNorm2d(8), nn.SiLU()), nn.Dropout(), conv(), nn.BatchNorm2d(8)], ["f"]),
        ([conv(), nn.ReLU(), conv(kernel=5)], ["f.0", "f.2"]),  # two kernels
        ([conv(), nn.ReLU(), conv(), conv(kernel=1)], ["f.0", "f.2"]),  # a bottleneck
        ([conv(padding=2), conv(padding=0)], ["f.0", "f.1"]),  # a size of its own between
        ([conv(), nn.MaxPool2d(3, 2, 1), nn.Upsample(scale_factor=2), conv()], ["f.0", "f.3"]),
        ([conv(outer=16), nn.ReLU(), conv(16, 16, groups=16), nn.ReLU6(), conv(16, kernel=1)], ["f.0"]),
        ([conv(outer=16, kernel=1), nn.ReLU(), conv(16, 16, groups=16), conv(16, kernel=1)], ["f"]),
        (
            [conv(outer=16, kernel=1), conv(16, 16, groups=16), conv(16, kernel=1), conv()],
            ["f.3"],
        ),  # not alone in a block
    ],
)
def test_chains(layers: list[nn.Module], expected: list[str]) -> None:
    assert paths(find(Sum(*layers), IMAGE)) == expected


class Used(nn.Module):
    """Two convolutions, the first of which gives more than the second takes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3), conv(), conv()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = functional.relu(self.one(x))
        return x + self.two(y), y


class Between(nn.Module):
    """A residual block with a function between its convolutions, and another on what comes out and what came in."""

    def __init__(self, between: Callable[..., Tensor], after: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3), conv(), conv()
        self.norm, self.slope = nn.BatchNorm2d(8), nn.Parameter(torch.ones(8))
        self.between, self.after = between, after

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.after(self.two(self.between(self, self.one(x))), x)


@pytest.mark.parametrize(
    ("between", "after", "kinds"),
    [
        (lambda block, y: y.relu(), lambda y, x: y.abs(), ["branch"]),
        (lambda block, y: y.abs(), lambda y, x: y, ["conv", "conv"]),  # no module does this
        (
            lambda block, y: functional.prelu(y, block.slope),
            lambda y, x: y,
            ["conv", "conv"],
        ),  # a weight
        (lambda block, y: block.norm(block.norm(y)), lambda y, x: y, ["conv", "conv"]),  # statistics of two places
        (lambda block, y: functional.dropout(y, 0.5), lambda y, x: y, ["conv", "conv"]),  # in every mode
        (lambda block, y: y.relu(), lambda y, x: torch.maximum(y, x), ["conv", "conv"]),  # not what is added
    ],
)
def test_functions_between_and_after(between: Any, after: Any, kinds: list[str]) -> None:
    assert [site.kind for site in find(Between(between, after), IMAGE).sites] == kinds


class Flat(nn.Module):
    """Two branches whose modules are the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a1, self.a2, self.b1, self.b2 = conv(3), conv(), conv(), conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a2(self.a1(x).relu())
        return x + self.b2(self.b1(x).relu_())


def test_no_two_sites_have_one_path() -> None:
    found = find(Flat(), IMAGE)
    assert [(site.path, site.steps) for site in found.sites] == [
        ("a1", ("a1", "ReLU()", "a2")),
        ("b1", ("b1", "ReLU()", "b2")),
    ]


def test_what_is_used_elsewhere_is_no_chain() -> None:
    assert paths(find(Used(), IMAGE)) == ["one", "two"]


class Named(nn.Module):
    """A residual branch in a sequence whose modules the network has by names of their own, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.three = conv(3), conv(), conv(), conv()
        self.branch = nn.Sequential(self.one, nn.ReLU(), self.two)
        self.single = nn.Sequential(self.three)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.branch(x)
        return self.single(x)


class Inside(Named):
    """Between two of its convolutions runs a sequence that holds the third one."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.two(self.single(self.one(x)))


def test_convolutions_with_two_names() -> None:
    """Called by the second one they were not reached, or taken for what stands between two others."""
    found = find(Named(), IMAGE)
    assert [(site.kind, site.steps) for site in found.sites] == [
        ("branch", ("one", "branch.1", "two")),
        ("conv", ("three",)),
    ]
    assert [site.steps for site in find(Inside(), IMAGE).sites] == [("one",), ("three", "two")]


def test_a_normalisation_that_shares_its_weights_stays() -> None:
    """Replaced with the branch it was counted in it and where its weights stayed."""
    networks = [Sum(conv(), nn.BatchNorm2d(8), conv(), nn.BatchNorm2d(8)) for _ in range(2)]
    networks[0].f[1].weight = networks[0].f[3].weight
    assert [paths(find(network, IMAGE)) for network in networks] == [["f.0", "f.2"], ["f"]]
    space = swap_blocks(networks[0], IMAGE)
    table = price(space, space.blocks(), space.run_counted, ["params"])
    assert table.original_cost("params") == sum(weight.numel() for weight in networks[0].parameters())

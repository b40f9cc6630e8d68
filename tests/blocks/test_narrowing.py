"""A branch with fewer channels inside: what it computes, what it is made of, and what cannot be narrowed."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap import Architecture, swap_blocks
from nni_blockswap.blocks.finding import find
from nni_blockswap.blocks.inheritance import settle_all
from nni_blockswap.blocks.narrowing import is_narrowable, layers, narrow, take_over
from nni_blockswap.blocks.network import NetworkSpace
from nni_blockswap.blocks.shells import Block
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import SpaceError
from nni_blockswap.spaces import NETWORK, named_arguments
from tests.blocks.networks import Sum, conv
from tests.cost.test_table import count_macs, count_params

IMAGE = torch.zeros(1, 3, 8, 8)
DEAD = [0, 3, 4, 5, 9, 10, 12, 13]
"""Of 16 inner channels, those that nobody listens to."""


class Gate(nn.Module):
    """Squeeze-and-excitation of 1x1 convolutions, the way between ``hidden`` wide, or of linear layers."""

    def __init__(self, channels: int, hidden: int = 4, linear: bool = False) -> None:
        super().__init__()
        kind = (lambda *widths: nn.Linear(*widths)) if linear else (lambda *widths: nn.Conv2d(*widths, 1))
        self.linear, self.down, self.up = linear, kind(channels, hidden), kind(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3)) if self.linear else x.mean((2, 3), keepdim=True)
        scale = self.up(self.down(mean).relu()).sigmoid()
        return x * (scale[:, :, None, None] if self.linear else scale)


class Scale(nn.Module):
    """A number a channel, as (1, C, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Blur(nn.Module):
    """A fixed filter of each channel, kept as a buffer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (line[:, None] * line).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.get_buffer("kernel")
        return F.conv2d(x, kernel, padding=1, groups=len(kernel))


class NormAct(nn.Module):
    """A norm and an activation in one module."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.n, self.a = norm, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.n(x))  # type: ignore[no-any-return]


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of each position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Standardised(nn.Conv2d):
    """A convolution whose weights have no mean."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Halved(Sum):
    """f(x) is half as high and wide as x."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.f(x) + x[:, :, ::2, ::2]


BRANCHES: dict[str, Callable[[], list[nn.Module]]] = {
    "norm, relu": lambda: [conv(8, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 8, bias=False)],
    "relu before norm": lambda: [conv(8, 16), nn.ReLU(), nn.BatchNorm2d(16), conv(16, 8)],
    "norm twice": lambda: [conv(8, 16), nn.BatchNorm2d(16), nn.SiLU(), nn.BatchNorm2d(16), conv(16, 8)],
    "no norm": lambda: [conv(8, 16), nn.ELU(0.5), conv(16, 8, bias=False)],
    "nothing between": lambda: [conv(8, 16, bias=False), conv(16, 8)],
    "the second strided": lambda: [conv(8, 16), nn.ReLU(), conv(16, 8, stride=2)],
    "the first strided": lambda: [conv(8, 16, stride=2), nn.ReLU(), conv(16, 8)],
    "the second dilated": lambda: [conv(8, 16), nn.ReLU(), conv(16, 8, dilation=2, padding=2)],
    "the first dilated": lambda: [conv(8, 16, dilation=2, padding=2), nn.ReLU(), conv(16, 8)],
    "the second padded otherwise": lambda: [conv(8, 16), nn.ReLU(), conv(16, 8, padding_mode="reflect")],
    "dropout": lambda: [conv(8, 16), nn.Sequential(nn.BatchNorm2d(16), nn.GELU()), nn.Dropout(0.3), conv(16, 8)],
    "slopes": lambda: [conv(8, 16), nn.Identity(), nn.PReLU(16), Scale(16), conv(16, 8)],
    "excited": lambda: [conv(8, 16), nn.BatchNorm2d(16), nn.ReLU(), Gate(16), conv(16, 8)],
    "excited by linear layers": lambda: [conv(8, 16), nn.BatchNorm2d(16), Gate(16, 8, linear=True), conv(16, 8)],
    "blurred": lambda: [conv(8, 16), nn.ReLU(), Blur(16), conv(16, 8)],
    "groups in a wrapper": lambda: [conv(8, 16), NormAct(nn.GroupNorm(16, 16)), conv(16, 8)],
    "normalised without a scale": lambda: [conv(8, 16), LayerNorm2d([16], elementwise_affine=False), conv(16, 8)],
    "excited, nothing squeezed": lambda: [conv(8, 16), nn.BatchNorm2d(16), Gate(16, 16), conv(16, 8)],
}


MIXED = ("normalised without a scale", "excited, nothing squeezed")
"""Where what passes a channel depends on all others."""


def swapped(branch: list[nn.Module]) -> Block:
    """The one block of a network with it, all weights and statistics as after a training."""
    torch.manual_seed(0)
    strided = any(isinstance(layer, nn.Conv2d) and layer.stride != (1, 1) for layer in branch)
    network = (Halved if strided else Sum)(*branch)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_() if weight.dim() < 2 else weight.normal_(std=0.3)
        network.train()(torch.randn(32, 3, 8, 8))
    (block,) = swap_blocks(network.eval(), IMAGE, extra=["W(1/2)"]).blocks()
    return block


@pytest.mark.parametrize("branch", BRANCHES.values(), ids=BRANCHES.keys())
def test_a_branch_narrowed_by_nothing_is_the_original(branch: Callable[[], list[nn.Module]]) -> None:
    block = swapped(branch())
    original, x = block.candidate("S"), torch.randn(4, 8, 8, 8)
    whole = narrow(layers(original), 16)
    assert take_over(whole, original)
    assert torch.equal(whole.eval()(x), original(x))


@pytest.mark.parametrize("branch", [one for name, one in BRANCHES.items() if name not in MIXED])
def test_a_branch_narrowed_by_channels_that_nobody_hears_is_the_same(branch: Callable[[], list[nn.Module]]) -> None:
    block = swapped(branch())
    original, x = block.candidate("S"), torch.randn(4, 8, 8, 8)
    with torch.no_grad():
        layers(original)[-1].get_parameter("weight")[:, DEAD] = 0
        for layer in layers(original):
            if isinstance(layer, Gate):
                layer.down.weight[:, DEAD] = 0
    narrowed = block.candidate("W(1/2)").eval()
    assert block.site.inherit("W(1/2)", narrowed, original, x)
    torch.testing.assert_close(narrowed(x), original(x), rtol=1e-5, atol=1e-5)
    assert all(not tensor.shape or 16 not in tensor.shape for tensor in narrowed.state_dict().values())


def test_a_fixed_filter_stays_what_it_is() -> None:
    branch = narrow([conv(8, 16), Blur(16), conv(16, 8)], 8)
    assert torch.equal(branch.get_buffer("blur1.kernel"), Blur(8).get_buffer("kernel"))


def test_the_hidden_layer_of_an_excitation_stays_as_it_is() -> None:
    block = swapped(BRANCHES["excited"]())
    names = {name: tuple(value.shape) for name, value in block.candidate("W(1/2)").named_parameters()}
    assert names == {
        "conv1.weight": (8, 8, 3, 3), "conv1.bias": (8,), "bn1.weight": (8,), "bn1.bias": (8,),
        "gate1.down.weight": (4, 8, 1, 1), "gate1.down.bias": (4,), "gate1.up.weight": (8, 4, 1, 1),
        "gate1.up.bias": (8,), "conv2.weight": (8, 8, 3, 3), "conv2.bias": (8,),
    }  # fmt: skip


def test_costs_are_those_of_the_built_network() -> None:
    space = swap_blocks(Halved(*BRANCHES["the second strided"]()[:2], Gate(16), conv(16, 8, stride=2)), IMAGE,
                        extra=["W(1/2)"])  # fmt: skip
    arguments = named_arguments(NetworkSpace, *space.trace_args, **space.trace_kwargs)
    one = Architecture.from_choices(NETWORK, ["W(1/2)"], arguments)
    built = one.build()
    assert (one.params, one.macs) == (count_params(built), count_macs(built, IMAGE))
    assert one.macs == 64 * 9 * 3 * 8 + 64 * 9 * 8 * 8 + 2 * 4 * 8 + 16 * 9 * 8 * 8


BEHIND = {
    "norm and activation in one": lambda norm: ([NormAct(norm)], True),
    "dropout alone": lambda norm: ([norm, nn.Dropout2d()], False),
    "an excitation alone": lambda norm: ([norm, Gate(16)], False),
    "a norm in an excitation": lambda norm: ([norm, nn.ReLU(), Excited(16)], True),
}


class Excited(Gate):
    """An excitation that ends with a norm of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.last = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.last(self.up(self.down(x.mean((2, 3), keepdim=True)).relu())).sigmoid()


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND.keys())
def test_channels_are_chosen_by_what_the_norm_lets_out_and_what_is_behind_it(
    behind: Callable[[nn.Module], tuple[list[nn.Module], bool]],
) -> None:
    """Half of the channels have large negative shifts: nothing of them passes an activation, all of it passes none."""
    torch.manual_seed(0)
    norm, low = nn.BatchNorm2d(16), torch.arange(0, 16, 2)
    with torch.no_grad():
        norm.bias[low] = -9
    between, rectified = behind(norm)
    original = nn.Sequential(conv(8, 16), *between, conv(16, 8))
    with torch.no_grad():
        for end in (original[0], original[-1]):
            end.weight.fill_(1)
        original[0].weight[low] = 1 if rectified else 0.1
    branch = narrow(layers(original), 8)
    assert take_over(branch, original)
    kept = next(value for name, value in branch.named_parameters() if name in ("bn1.bias", "normact1.n.bias"))
    assert bool((kept == (0 if rectified else -9)).all())


def test_a_depthwise_convolution_behind_the_norm_counts() -> None:
    depthwise, kept = conv(16, 16, groups=16), [1, 2, 5, 7, 8, 11, 14, 15]
    original = nn.Sequential(conv(8, 16, kernel=1), nn.BatchNorm2d(16), nn.ReLU(), depthwise, conv(16, 8, kernel=1))
    with torch.no_grad():
        original[4].weight.fill_(1)
        depthwise.weight[kept] += 9
    branch = narrow(layers(original), 8, 3)
    assert take_over(branch, original)
    assert torch.equal(branch.get_parameter("conv2.weight"), depthwise.weight[kept])


def test_one_activation_behind_both_norms_runs_twice() -> None:
    act = nn.ReLU6()
    original = nn.Sequential(conv(8, 32, kernel=1), nn.BatchNorm2d(32), act, conv(32, 32, groups=32),
                             nn.BatchNorm2d(32), act, conv(32, 8, kernel=1)).eval()  # fmt: skip
    whole, x = narrow(layers(original), 32, 3), torch.randn(2, 8, 6, 6)
    assert take_over(whole, original)
    assert torch.equal(whole.eval()(x), original(x))
    assert [type(layer) for layer in whole].count(nn.ReLU6) == 2


def test_a_convolution_that_computes_otherwise_is_told() -> None:
    original = nn.Sequential(Standardised(8, 16, 3, padding=1), nn.ReLU(), conv(16, 8))
    assert not take_over(narrow(layers(original), 8), original)


@pytest.mark.parametrize("between", [nn.ReLU(), nn.BatchNorm2d(16)], ids=str)
def test_whether_channels_can_be_taken_is_asked_on_the_cpu(between: nn.Module) -> None:
    with torch.device("meta"):
        assert is_narrowable(between, (16, 4, 4))


@pytest.mark.parametrize("between", [nn.ChannelShuffle(4), nn.LocalResponseNorm(3, alpha=1.0), nn.GLU(1)], ids=str)
def test_what_mixes_channels_cannot_be_narrowed(between: nn.Module) -> None:
    assert not is_narrowable(between, (16, 4, 4))


@pytest.mark.parametrize(
    "between", [nn.GroupNorm(4, 16), nn.Softmax(1), nn.Dropout2d(), nn.PReLU(), nn.PReLU(16), Gate(16, 16)], ids=str
)
def test_what_takes_channels_alike_can_be_narrowed_and_draws_from_no_generator(between: nn.Module) -> None:
    state = torch.get_rng_state()
    assert is_narrowable(between, (16, 4, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_branch_that_shuffles_its_channels_has_no_w() -> None:
    network = Sum(conv(8, 16), nn.ReLU(), nn.ChannelShuffle(2), conv(16, 8)).eval()
    (site,) = find(network, IMAGE).sites
    assert site.rigid == "f.2"
    (block,) = swap_blocks(network, IMAGE, extra=["W(1/2)"]).blocks()
    assert "W(1/2)" not in block.names
    with pytest.raises(SpaceError, match=r"'W\(1/2\)' does not fit here: 'f\.2', between the original's convolutions"):
        block.site.build("W(1/2)")


def test_another_branch_is_told_and_nothing_is_changed() -> None:
    original = nn.Sequential(conv(8, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 8))
    for other in (nn.Sequential(conv(8, 16), nn.ReLU(), nn.BatchNorm2d(16), conv(16, 8)),
                  nn.Sequential(conv(8, 24), nn.BatchNorm2d(24), nn.ReLU(), conv(24, 8)),
                  nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, kernel=5))):  # fmt: skip
        before = {name: value.clone() for name, value in other.state_dict().items()}
        assert not take_over(other, original)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def mobile(kernel: int = 5, stride: int = 1, excited: bool = False, norms: bool = True, dilation: int = 1) -> nn.Module:
    """A network of one inverted residual of expansion 4, with weights and statistics as after a training."""
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(32)] if norms else []
    options: dict[str, int] = {"padding": dilation * (kernel // 2), "stride": stride, "dilation": dilation}
    block = [
        conv(8, 32, kernel=1, bias=not norms), *norm, nn.Hardswish(),
        conv(32, 32, kernel, groups=32, bias=not norms, **options), *copy.deepcopy(norm), nn.ReLU6(),
        *([Gate(32)] if excited else []), conv(32, 12, kernel=1),
    ]  # fmt: skip
    network = nn.Sequential(conv(3), nn.Sequential(*block))
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_() if weight.dim() < 2 else weight.normal_(std=0.3)
        network.train()(torch.randn(32, 3, 8, 8))
    return network.eval()


MOBILES = [{}, {"stride": 2}, {"excited": True}, {"norms": False}, {"dilation": 2}, {"excited": True, "stride": 2}]


@pytest.mark.parametrize("options", MOBILES, ids=str)
def test_an_inverted_residual_narrowed_by_nothing_is_the_original(options: dict[str, Any]) -> None:
    (block,) = swap_blocks(mobile(**options), IMAGE).blocks()
    assert block.site.narrow is not None
    original, whole, x = block.candidate("S"), block.site.narrow(32, 5), torch.randn(4, 8, 8, 8)
    assert take_over(whole, original)
    assert torch.equal(whole.eval()(x), original(x))


@pytest.mark.parametrize("options", MOBILES, ids=str)
def test_an_inverted_residual_that_does_the_work_of_a_smaller_one_is_taken_over_whole(options: dict[str, Any]) -> None:
    (block,) = swap_blocks(mobile(**options), IMAGE).blocks()
    original, dead = block.candidate("S"), torch.randperm(32)[:16]
    _, depthwise, project = (layer for layer in layers(original) if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        project.weight[:, dead] = 0  # nobody listens to half of the channels
        for layer in layers(original):
            if isinstance(layer, Gate):
                layer.down.weight[:, dead] = 0
    x = torch.randn(4, 8, 8, 8)
    for name in ("MB(2,5)", "MB(2,3)"):
        branch = block.site.build(name).eval()
        if name == "MB(2,3)":  # nor to the outermost weights
            with torch.no_grad():
                depthwise.weight.copy_(F.pad(depthwise.weight[:, :, 1:4, 1:4], [1] * 4))
            settle_all(original, x)
        assert block.site.inherit(name, branch, original, x)
        torch.testing.assert_close(branch(x), original(x), rtol=1e-4, atol=1e-4)


def test_a_smaller_kernel_has_the_statistics_of_what_passes_it() -> None:
    (block,) = swap_blocks(mobile(), IMAGE).blocks()
    branch, x = block.site.build("MB(4,3)").eval(), torch.randn(16, 8, 8, 8)
    assert block.site.inherit("MB(4,3)", branch, block.candidate("S"), x)
    passed = branch[:4](x)
    torch.testing.assert_close(branch.get_submodule("bn2").running_mean, passed.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_smaller_inverted_residuals_keep_names_and_excitation_and_costs_are_those_of_the_built_network() -> None:
    space = swap_blocks(mobile(excited=True), IMAGE)
    (block,) = space.blocks()
    names = [name for name, _ in block.candidate("MB(2,3)").named_children()]
    assert names == ["conv1", "bn1", "act1", "conv2", "bn2", "act2", "gate1", "conv3"]
    one = Architecture.from_choices(NETWORK, ["MB(2,3)"], named_arguments(NetworkSpace, *space.trace_args,
                                                                          **space.trace_kwargs))  # fmt: skip
    built = one.build()
    assert (one.params, one.macs) == (count_params(built), count_macs(built, IMAGE))
    assert one.macs == 64 * (9 * 3 * 8 + 8 * 16 + 9 * 16 + 16 * 12) + 2 * 4 * 16


def test_what_cannot_be_narrowed_goes_from_a_smaller_inverted_residual_which_begins_fresh() -> None:
    network = mobile()
    network[1].insert(6, nn.ChannelShuffle(2))
    (block,) = swap_blocks(network, IMAGE).blocks()
    branch, original = block.candidate("MB(2,3)"), block.candidate("S")
    assert block.site.rigid is not None
    assert [type(layer) for layer in branch].count(nn.ChannelShuffle) == 0
    assert not block.site.inherit("MB(2,3)", branch, original, torch.randn(2, 8, 8, 8))


class Slope(nn.PReLU):
    """An activation of one's own, with a weight."""


@pytest.mark.parametrize("between", [nn.PReLU, Slope, lambda: Gate(16)], ids=["PReLU", "Slope", "Gate"])
def test_all_weights_learn_where_the_original_is_frozen(between: Callable[[], nn.Module]) -> None:
    network = Sum(conv(8, 16), nn.BatchNorm2d(16), between(), conv(16, 8)).requires_grad_(False)
    (block,) = swap_blocks(network.eval(), IMAGE, extra=["W(1/2)"]).blocks()
    for name in block.names[1:]:
        learning = {key: value.requires_grad for key, value in block.candidate(name).named_parameters()}
        assert all(learning.values()), (name, learning)


@pytest.mark.gpu
def test_weights_are_drawn_on_the_cpu_wherever_the_original_is() -> None:
    # Needs a CUDA device.
    branch = BRANCHES["excited by linear layers"]()
    with seeded(0):
        here = narrow(branch, 8).state_dict()
    state = torch.cuda.get_rng_state()
    with seeded(0):
        there = narrow([layer.cuda() for layer in branch], 8).state_dict()
    assert all(torch.equal(value, there[name]) for name, value in here.items())
    assert torch.equal(torch.cuda.get_rng_state(), state)

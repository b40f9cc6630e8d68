"""The links of networks of one's own: as small as the network allows, and scores as the plain way gives them."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from nni_blockswap import swap_blocks
from nni_blockswap.blocks.network import NetworkSpace
from nni_blockswap.scoring.engines import cpu_layers, plain
from nni_blockswap.scoring.engines.base import Work
from nni_blockswap.scoring.engines.chain import FisherChain
from nni_blockswap.scoring.engines.feeding import feeding
from nni_blockswap.scoring.engines.links import links
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.tasks.classification import Classification

TASK = Classification()


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Body(nn.Module):
    """A stem, a residual block, a convolution that a rectifier in place follows, a residual block, a head."""

    def __init__(self, activation: Callable[[], nn.Module] = lambda: nn.ReLU(inplace=True)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation())
        self.body = nn.Sequential(
            Residual(8), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), activation(), Residual(16)
        )  # fmt: skip
        self.fc = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images, self.body(self.stem(images)))

    def head(self, images: Tensor, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Deep(Body):
    """Two of the three convolutions of its stem can be swapped."""

    def __init__(self) -> None:
        super().__init__()
        more = [part for _ in range(2) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
        self.stem = nn.Sequential(*self.stem, *more)


class Counting(Body):
    """Its head counts the images that came in."""

    def head(self, images: Tensor, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.reshape(len(images), 16, -1).mean(2))
        return logits


class Dropping(Body):
    """Its head drops at random."""

    def head(self, images: Tensor, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().head(images, x), training=self.training)


class Inside(Body):
    """Its head also sees what runs inside the first residual block."""

    def head(self, images: Tensor, x: Tensor) -> Tensor:
        return super().head(images, x) + self.seen.mean()

    def forward(self, images: Tensor) -> Tensor:
        handle = self.body[0].bn1.register_forward_hook(lambda module, inputs, output: setattr(self, "seen", output))
        try:
            return super().forward(images)
        finally:
            handle.remove()


def resnet(name: str) -> nn.Module:
    network: nn.Module = getattr(torchvision.models, name)(num_classes=10)
    return network


def shared() -> nn.Module:
    relu = nn.ReLU()
    return Body(lambda: relu)


def space_of(network: nn.Module) -> NetworkSpace:
    torch.manual_seed(0)
    space = swap_blocks(network, torch.zeros(1, 3, 32, 32))
    return space.double().train().requires_grad_(False)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 32, 32, generator=generator, dtype=torch.float64), torch.arange(6)


@pytest.mark.parametrize(
    ("make", "sites"),
    [
        (Body, [1, 1, 1]),
        (Deep, [1] * 5),
        (lambda: resnet("resnet18"), [1] * 8),
        (lambda: resnet("resnet50"), [1] * 16),
        (lambda: nn.Sequential(*Body().stem, *Body().body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), [1, 1, 1]),
    ],
    ids=["body", "deep", "resnet18", "resnet50", "sequential"],
)
def test_a_chain_of_links_scores_as_the_plain_way_does(make: Callable[[], nn.Module], sites: list[int]) -> None:
    space, data = space_of(make()), batch()
    found = links(space, TASK, data)
    assert [len(link.blocks) for link in found] == sites
    assert feeding(space, TASK, data, found) == (len(sites) - 1,)
    chain = FisherChain(space, TASK, [data])
    blocks = space.blocks()
    for row in (1, 4, 5):
        choices = {block.label: block.names[row % len(block.names)] for block in blocks}
        choices[blocks[-1].label] = blocks[-1].names[row - 1]  # neighbours share what lies before
        space.select(choices)
        by_proxy = make_proxy("fisher").measure(space, TASK, data)
        assert chain.measure(choices).blocks == pytest.approx(by_proxy.blocks, rel=1e-9)


@pytest.mark.parametrize("make", [Counting, Dropping, Inside, shared])
def test_what_looks_like_a_chain_and_is_none(make: Callable[[], nn.Module]) -> None:
    space, data = space_of(make()), batch()
    assert feeding(space, TASK, data, links(space, TASK, data)) == ()


class Decaying(Body):
    """Puts another buffer in place of its own in every pass, and keeps one that cannot be written to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("decay", torch.ones(()))
        self.register_buffer("wide", torch.ones(1).expand(10))
        self.register_buffer("seen", None)

    def head(self, images: Tensor, x: Tensor) -> Tensor:
        self.decay = self.decay * 0.7
        self.seen = torch.zeros(()) if self.seen is None else self.seen + 1
        return super().head(images, x) * self.decay * self.wide + self.seen


def test_what_a_pass_puts_in_place_of_a_buffer_is_put_back() -> None:
    space, data = space_of(Decaying()), batch()
    space.network.wide = torch.ones(1, dtype=torch.float64).expand(10)
    decay, seen = space.network.decay, space.network.seen
    value = decay.item()
    found = links(space, TASK, data)
    assert found
    assert space.network.decay is decay
    assert space.network.seen is seen
    assert feeding(space, TASK, data, found) == ()
    work = Work(lambda: space, TASK, make_proxy("fisher"), [data], [], torch.device("cpu"), "float64", False)
    choices = {block.label: block.names[1] for block in space.blocks()}
    first, second = (plain.measure(work, space, choices) for _ in range(2))
    assert first == second
    assert space.network.decay is decay
    assert decay.item() == value
    assert space.network.seen is seen


def normed() -> nn.Module:
    """After a pass, so that it holds what that has computed."""
    network = Body()
    network.fc = torch.nn.utils.weight_norm(network.fc)
    return network


def test_weight_normed_networks_are_compared_in_fast_layers() -> None:
    space, (images, _) = space_of(normed()).float().requires_grad_(True), batch()
    space(images.float())
    assert cpu_layers._answers_alike(space, images.float())


def test_where_fast_layers_cannot_be_made_the_others_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise RuntimeError("no copies")

    space, (images, _) = space_of(Body()).float(), batch()
    monkeypatch.setattr(Body, "__deepcopy__", refuses, raising=False)
    assert not cpu_layers._answers_alike(space, images.float())


def test_a_network_is_left_as_it_was() -> None:
    space, data = space_of(Body()), batch()
    feeding(space, TASK, data, links(space, TASK, data))
    assert not any("forward" in vars(module) for module in space.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in space.network.modules())

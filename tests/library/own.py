"""A user's own network: a stem, two blocks of two convolutions and a head, functions called between them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap.tasks import TASKS
from nni_blockswap.tasks.classification import Classification, Labelled


class Part(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 32, 3, padding=1), nn.Linear(32, 10)
        self.first, self.second = Part(32), Part(32)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(images))).mean((2, 3)))


def own() -> nn.Module:
    return _seeded(Own)


def deep() -> nn.Module:
    return _seeded(Deep)


def _seeded(kind: type[nn.Module]) -> nn.Module:
    """The same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind()


class Dropping(Own):
    """Its head sees half of the features, drawn at random, while it is trained."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.first(self.stem(images))).mean((2, 3))
        return self.head(F.dropout(features, 0.5, self.training))


class Idle(Own):
    """It has a head that nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(32, 2)


class Listing(Own):
    """It takes images as a list, as detectors do."""

    def forward(self, images: list[Tensor]) -> Tensor:
        return super().forward(torch.stack(images))


class Deep(Own):
    """Some of its weights have five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv3d(32, 32, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.first(self.stem(images)))
        return self.head(self.frames(features[:, :, None])[:, :, 0].mean((2, 3)))


class Keeping(Own):
    """It keeps what is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 0}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


class Squares(Classification):
    """Noise in colours, 64x64; as much as is asked for."""

    name, num_classes = "squares", 10

    def minibatch(self, batch_size: int, *, seed: int, index: int = 0, augment: bool = True) -> Labelled:
        generator = torch.Generator().manual_seed(1000 * seed + index)
        return torch.randn(batch_size, 3, 64, 64, generator=generator), torch.arange(batch_size) % 10


TASKS.register("squares", lambda root: Squares())

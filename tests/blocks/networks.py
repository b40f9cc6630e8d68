"""Networks that finding and surgery must hold for, and how many sites each has.

``python -m tests.blocks.networks > docs/networks.md`` writes the page about them.
"""

import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nni_blockswap.blocks.finding import find
from nni_blockswap.blocks.found import Findings
from nni_blockswap.errors import SpaceError


@dataclass(frozen=True)
class Network:
    """A network and its sites by kind: none where it is refused."""

    source: str
    name: str
    sites: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        if self.source == "timm":
            return pytest.importorskip("timm").create_model(self.name, num_classes=10)
        return getattr(importlib.import_module(self.source), self.name)(**self.settings)

    def arguments(self, training: bool = False) -> tuple[Any, ...]:
        """What forward takes: two images, and in a detector's training what is to be seen on them."""
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        if not self.source.endswith("detection"):
            return (images,)
        box = {"boxes": torch.tensor([[8.0, 8.0, 48.0, 40.0]]), "labels": torch.tensor([1])}
        return (list(images), [box, box]) if training else (list(images),)

    def __str__(self) -> str:
        return self.name + "".join(f"-{name}" for name in ("aux_logits",) if self.settings.get(name))


IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def paths(found: Findings) -> list[str]:
    return [site.path for site in found.sites]


def stays(found: Findings) -> dict[str, str]:
    return {kept.path: kept.reason for kept in found.kept}


def conv(inner: int = 8, outer: int = 8, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel, **{"padding": kernel // 2, **options})


class Sum(nn.Module):
    """x + f(x) after a stem."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.stem = conv(3)
        self.f = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.f(x)


class FunctionalBlock(nn.Module):
    """A residual block that calls its activation and its dropout as functions."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride, padding=1, padding_mode="reflect")
        self.norm = nn.GroupNorm(4, outer)
        self.second = nn.Conv2d(outer, outer, 3, padding=1, padding_mode="reflect")
        self.last_norm = nn.GroupNorm(4, outer)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.norm(self.first(x)), 0.2, inplace=True)
        y = functional.dropout(y, 0.5, training=self.training)
        y = self.last_norm(self.second(y))
        y += self.shortcut(x)
        return functional.leaky_relu(y, 0.2)


class Nested(nn.Module):
    """Modules in modules in modules; functions for all that has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.ModuleDict({
            "low": nn.Sequential(FunctionalBlock(8, 8), FunctionalBlock(8, 16, stride=2)),
            "high": nn.Sequential(nn.Sequential(FunctionalBlock(16, 16))),
        })  # fmt: skip
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body["high"](self.body["low"](functional.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Twice(nn.Module):
    """One convolution runs twice, two share a weight, one never runs, and the last stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.other = nn.Conv2d(8, 8, 3, padding=1)
        self.other.weight = self.one.weight
        self.never = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 10, 5, stride=(2, 1), padding=(2, 4), dilation=(1, 2), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(functional.relu(self.twice(self.stem(x))))
        return self.last(self.other(functional.silu(self.one(x)))).mean((2, 3))


class PreActivation(nn.Module):
    """Blocks out of a ModuleList, run by the network itself; all use one ReLU."""

    def __init__(self, widths: tuple[int, ...] = (8, 8, 16)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "bn1": nn.BatchNorm2d(inner),
                "conv1": nn.Conv2d(inner, outer, 3, 1 + (inner != outer), padding=1, bias=False),
                "bn2": nn.BatchNorm2d(outer),
                "conv2": nn.Conv2d(outer, outer, 3, padding=1, bias=False),
                "shortcut": nn.Conv2d(inner, outer, 1, 2) if inner != outer else nn.Identity(),
            })
            for inner, outer in pairwise(widths)
        )  # fmt: skip
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = self.relu(block["bn1"](x))
            x = block["shortcut"](x) + block["conv2"](self.relu(block["bn2"](block["conv1"](y))))
        return self.head(self.relu(x).mean((2, 3)))


def sequential() -> nn.Sequential:
    """A network without a line of code of its own."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 16, 3, padding="same"), nn.BatchNorm2d(16), nn.Hardswish()),
        nn.Conv2d(16, 16, 4, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


VISION = "torchvision.models"
SEGMENTATION, DETECTION = f"{VISION}.segmentation", f"{VISION}.detection"
FRESH = {"weights": None, "num_classes": 10}
UNDRAWN = {**FRESH, "init_weights": False}  # theirs takes seconds
WHOLE = {**FRESH, "weights_backbone": None}

OWN = [
    Network(__name__, "Nested", {"branch": 3}),
    Network(__name__, "Twice", {"conv": 1}),
    Network(__name__, "PreActivation", {"branch": 2}),
    Network(__name__, "sequential", {"conv": 2}),
]
NETWORKS = [
    Network(VISION, "resnet18", {"branch": 8}, FRESH),
    Network(VISION, "resnet50", {"conv": 16}, FRESH),
    Network(VISION, "wide_resnet50_2", {"conv": 16}, FRESH),
    Network(VISION, "resnext50_32x4d", {}, FRESH),
    Network(VISION, "vgg11_bn", {"conv": 7}, UNDRAWN),
    Network(VISION, "densenet121", {"conv": 58}, FRESH),
    Network(VISION, "mobilenet_v2", {"inverted": 16}, FRESH),
    Network(VISION, "mobilenet_v3_small", {"inverted": 10}, FRESH),
    Network(VISION, "efficientnet_b0", {"inverted": 15}, FRESH),
    Network(VISION, "regnet_y_400mf", {}, FRESH),
    Network(VISION, "shufflenet_v2_x0_5", {}, FRESH),
    Network(VISION, "squeezenet1_1", {"conv": 8}, FRESH),
    Network(VISION, "googlenet", {"conv": 19}, {**UNDRAWN, "aux_logits": False}),
    Network(VISION, "googlenet", {"conv": 19}, {**UNDRAWN, "aux_logits": True}),
    Network(SEGMENTATION, "deeplabv3_resnet50", {"conv": 20}, WHOLE),
    Network(
        DETECTION, "fasterrcnn_resnet50_fpn", {"conv": 20}, {**WHOLE, "num_classes": 91, "min_size": 64, "max_size": 64}
    ),
    Network("timm", "resnet26d", {"conv": 10}),
    Network("timm", "resnetv2_50", {"conv": 16}),
    Network("timm", "resnetv2_50x1_bit", {"conv": 16}),
    Network("timm", "seresnet18", {"branch": 8}),
    Network("timm", "convnext_atto", {}),
    Network("timm", "regnetx_002", {}),
    Network("timm", "mobilenetv3_small_100", {"inverted": 10}),
    Network("timm", "ghostnet_100", {}),
]

PAGE = """# What is found in well-known networks

Written by `python -m tests.blocks.networks > docs/networks.md` with torchvision {torchvision} and timm {timm}.

A *branch* is two k x k convolutions, with what stands between them, whose result is added to something: the paper's
residual branch. An *inverted* residual is a 1x1 expansion, a depthwise convolution and a 1x1 projection. A *conv* is
any other k x k convolution with k >= 3 and groups = 1. `*` stands for a number.
`print(bs.swap_blocks(network, example_input))` shows one network site by site, with shapes and with the path of what
stays.

| network | sites | where | stays |
|---|---|---|---|
{rows}

Refused, for want of a site:

| network | why |
|---|---|
{refused}
"""


def places(paths: list[str]) -> str:
    """Paths that differ only in numbers, once."""
    return ", ".join(dict.fromkeys(f"`{re.sub('[0-9]+', '*', path)}`" for path in paths))


def row(network: Network, found: Findings) -> str:
    sites = ", ".join(f"{count} {kind}" for kind, count in Counter(site.kind for site in found.sites).items())
    stays = ", ".join(f"{reason} ({count})" for reason, count in Counter(kept.reason for kept in found.kept).items())
    return f"| {network} | {sites} | {places([site.path for site in found.sites])} | {stays} |"


def page() -> str:
    rows, refused = [], []
    for network in NETWORKS:
        try:
            rows.append(row(network, find(network.make().eval(), network.arguments())))
        except SpaceError as error:
            refused.append(f"| {network} | {error} |")
    versions = {name: importlib.import_module(name).__version__.partition("+")[0] for name in ("torchvision", "timm")}
    return PAGE.format(rows="\n".join(rows), refused="\n".join(refused), **versions)


if __name__ == "__main__":
    sys.stdout.write(page())


def tensors(given: Any) -> Iterator[Tensor]:
    """Tensors in what a network gives: lists of dictionaries, named tuples, ..."""
    if isinstance(given, Tensor):
        yield given
    elif given is not None:
        for item in given.values() if isinstance(given, dict) else given:
            yield from tensors(item)

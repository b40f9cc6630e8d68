"""Substitutes from outside: the original by another name, with its weights, and one that has no weights."""

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.site import FAMILIES, Site
from nni_blockswap.errors import SpaceError


class Family:
    """One substitute, spelled as ``usage`` has it."""

    usage: str

    def reads(self, name: str) -> bool:
        return name.startswith(self.usage.removesuffix("1)"))

    def canonical(self, name: str, site: Site) -> str:
        return self.usage


class Copies(Family):
    usage = "COPY(1)"

    def build(self, name: str, site: Site) -> nn.Module:
        return site.build("S")

    def inherit(self, branch: nn.Module, original: nn.Module, entered: Tensor) -> None:
        branch.load_state_dict(original.state_dict())


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Zeros(Family):
    usage = "ZERO(1)"

    def canonical(self, name: str, site: Site) -> str:
        if (site.in_channels, site.stride) != (site.out_channels, 1):
            raise SpaceError("ZERO(1) keeps the shape.")
        return super().canonical(name, site)

    def build(self, name: str, site: Site) -> nn.Module:
        return Zero()


class InPlace(Family):
    usage = "INPLACE(1)"

    def build(self, name: str, site: Site) -> nn.Module:
        return nn.Sequential(nn.LeakyReLU(inplace=True), site.build("S"))


class Counter(nn.Conv2d):
    """It keeps what is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 0}


class Counters(Family):
    usage = "COUNT(1)"

    def build(self, name: str, site: Site) -> nn.Module:
        return Counter(site.in_channels, site.out_channels, 1, site.stride)


FAMILIES.register("copies", Copies())
FAMILIES.register("counters", Counters())
FAMILIES.register("in_place", InPlace())
FAMILIES.register("zeros", Zeros())

"""A substitute from outside that is the original by another name: it begins with the original's weights."""

from torch import Tensor, nn

from nni_blockswap.blocks.site import FAMILIES, Site


class Copies:
    usage = "COPY(1)"

    def reads(self, name: str) -> bool:
        return name.startswith("COPY(")

    def canonical(self, name: str, site: Site) -> str:
        return "COPY(1)"

    def build(self, name: str, site: Site) -> nn.Module:
        return site.build("S")

    def inherit(self, branch: nn.Module, original: nn.Module, entered: Tensor) -> None:
        branch.load_state_dict(original.state_dict())


FAMILIES.register("copies", Copies())

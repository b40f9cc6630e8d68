import torch
from torch import Tensor, nn

from nni_blockswap.blocks.network import swap_blocks
from nni_blockswap.blocks.weights import redrawing
from tests.blocks.networks import IMAGE, Sum, conv


class Asking(Sum):
    """Is drawn anew with a deviation that is said."""

    def __init__(self) -> None:
        super().__init__(conv(), conv())
        self.scale = nn.Parameter(torch.full((8, 1, 1), 3.0))

    def reset_parameters(self, deviation: float) -> None:
        nn.init.normal_(self.scale, std=deviation)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def test_a_class_that_asks_for_more_than_itself_is_not_drawn_anew() -> None:
    """A search of it ended in a TypeError."""
    assert redrawing(Asking()) is None
    assert redrawing(nn.ReLU()) is None
    space = swap_blocks(Asking(), IMAGE)
    before = space.network.stem.weight.clone()
    space.redraw()
    assert not torch.equal(space.network.stem.weight, before)
    assert torch.equal(space.network.scale, torch.full((8, 1, 1), 3.0))

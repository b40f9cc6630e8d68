"""MACs against closed forms: a product of each weight with each value that it meets, for one image."""

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap.cost.resources.macs import MACS


@pytest.mark.parametrize(
    ("module", "x", "products"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 4, 5), 3 * 8 * 9 * 20),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (1, 4, 4, 4), 2 * 8 * 9 * 4),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 3, 3), 4 * 6 * 4 * 9),
        (nn.Conv2d(3, 8, 3, padding=1), (16, 3, 4, 5), 16 * 3 * 8 * 9 * 20),  # patches of one image
        (nn.Conv1d(2, 5, 3), (2, 10), 2 * 5 * 3 * 8),  # no batch
        (nn.Conv3d(2, 3, 1), (1, 2, 2, 3, 4), 2 * 3 * 24),
        (nn.Linear(6, 7), (1, 5, 6), 6 * 7 * 5),
    ],
    ids=str,
)
def test_products_of_a_layer(module: nn.Module, x: tuple[int, ...], products: int) -> None:
    assert MACS.read([module], lambda: module(torch.zeros(x))) == products


class WithMask(nn.Conv2d):
    """Gives a mask beside its map."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x[:, :1] > 0


def test_layers_that_are_called_by_keyword_or_give_more_than_a_map() -> None:
    """A network with one of either had no table of costs."""
    layer, masked, fall = nn.ConvTranspose2d(4, 6, 2), WithMask(4, 8, 3), nn.Linear(6, 7)
    x = torch.zeros(1, 4, 3, 3)
    assert MACS.read([layer], lambda: layer(input=x)) == 4 * 6 * 4 * 9
    assert MACS.read([masked], lambda: masked(x)) == 4 * 8 * 9
    assert MACS.read([fall], lambda: fall(input=torch.zeros(1, 6))) == 6 * 7


def test_a_layer_that_runs_twice_counts_twice_and_others_do_not() -> None:
    shared, left_out = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1)
    x: Tensor = torch.zeros(1, 2, 3, 3)
    assert MACS.read([shared, nn.BatchNorm2d(2)], lambda: left_out(shared(shared(x)))) == 2 * 4 * 9

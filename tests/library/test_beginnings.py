"""What candidates begin with where the original is none of the usual ones."""

from pathlib import Path

import torch
from torch import nn

from nni_blockswap import swap_blocks
from nni_blockswap.library.bench import Bench
from tests.blocks.networks import Sum, conv
from tests.library.conftest import settings


class Gate(nn.Module):
    """Squeeze-and-excitation: its convolutions are dense ones, too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def test_where_nothing_is_taken_over_statistics_are_those_of_what_enters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Sum(conv(), nn.BatchNorm2d(8), nn.ReLU(), Gate(8), conv())
    (block,) = swap_blocks(network, torch.zeros(1, 3, 8, 8)).blocks()
    block.select("S")
    bench = Bench(block, settings(tmp_path / "teacher.pt"), tmp_path, torch.device("cpu"))
    bench.open()
    entered = 3 + 2 * torch.randn(8, 8, 8, 8)
    bench.inherit(entered, entered)
    assert bench.candidates.keys() >= {"G(2)", "B(2)", "BG(2,2)"}
    for candidate in bench.candidates.values():
        x = candidate.get_submodule("conv1")(entered)
        norm = candidate.get_submodule("bn1")
        torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)))

"""Write a config, a search space file and a model file to start from; the config runs as it is."""

import argparse
import json
from pathlib import Path
from runpy import run_path

from nni_blockswap.errors import ConfigError
from nni_blockswap.files import write_text

MODEL = '''"""The network to compress: ``make`` returns it, and config.yml names it. Put your own in its place."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x))))))"""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels // stride, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels // stride, channels, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.bn2(self.conv2(y)))


def make(width: int = 32, classes: int = 10) -> nn.Module:
    """Reads digits of 1x16x16. Load weights that you have here; then add ``--teacher original`` to the trialCommand."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        Residual(width), Residual(2 * width, 2), Residual(2 * width), Residual(4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes),
    )
'''

CONFIG = """# Shrink the network of model.py to 30 % of its parameters.
#
#     blockswap run config.yml                   checks, runs, follows, prints a table
#     nnictl create --config config.yml          the same by hand

experimentName: BlockSwap on a network of my own
searchSpaceFile: search_space.json   # what to try in each block; once model.py is changed, write it anew:
#     blockswap space --model model:make --input-size 1,16,16 --json > search_space.json
tuner:
  className: nni_blockswap.tuner.BlockSwapTuner
  codeDirectory: .                   # where model.py is
  classArgs:
    model: model:make                # the import path of a function that returns the network
    # model_args: {width: 32}
    # exclude: ["7*"]                # module paths that stay
    input_size: [1, 16, 16]
    data: digits                     # or image-folder, cifar10, ..., with data_root
    budget: 30%
    tolerance: 0.05
    samples: 100
    batch_size: 64
    students: 2
trialCommand: python -m trial.distill --data digits --epochs 8 --batch-size 64 --beta 100
trialCodeDirectory: .
maxTrialNumber: 2
trialConcurrency: 1
trainingService:
  platform: local
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", metavar="DIR", help="a new folder, or one without these files")


def run(options: argparse.Namespace) -> int:
    """Write the three files."""
    folder = Path(options.folder)
    names = ("config.yml", "search_space.json", "model.py")
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise ConfigError(f"'{folder / there[0]}' is there already; name a folder without it.")
    write_text(folder / "model.py", MODEL)
    write_text(folder / "config.yml", CONFIG)
    write_text(folder / "search_space.json", json.dumps(_search_space(folder / "model.py"), indent=2) + "\n")
    print(f"{', '.join(names)} are in '{folder}'. Next: cd {folder} && blockswap run config.yml")
    return 0


def _search_space(model: Path) -> object:
    """Of the network in the file."""
    import torch

    from nni_blockswap.blocks.network import swap_blocks
    from nni_blockswap.blocks.nni_format import to_nni
    from nni_blockswap.blocks.pricing import price

    space = swap_blocks(run_path(str(model))["make"](), torch.zeros(1, 1, 16, 16)).eval()
    return to_nni(price(space, space.blocks(), space.run_counted, ("params",)))

"""Networks to export, and the fresh processes that load what was written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import fx, nn

from nni_blockswap import Architecture
from tests.conftest import WRN


def trained(network: nn.Module, size: tuple[int, int, int]) -> nn.Module:
    """``network`` with statistics, scales and shifts in its BN that are not those of a fresh one; in training mode."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, *size))
    return network


def wide_resnet() -> nn.Module:
    choices = ["BG(2,4)", "S", "G(4)"]
    return Architecture.from_choices(WRN, choices, {"depth": 10, "width": 1, "image_size": 8}).build()


def rewritten_wide_resnet() -> nn.Module:
    """Its first stage is rewritten by torch.fx, as finding sites in a block's forward pass does."""
    network = wide_resnet()
    network.stage1 = fx.symbolic_trace(network.stage1)
    return network


def swapped_resnet18() -> nn.Module:
    """A student of one's own network, whose code stays while other modules stand in the place of its own."""
    given = {"model": "torchvision.models:resnet18", "model_args": {"num_classes": 10}, "input_size": [3, 32, 32]}
    choices = ["B(2)", "S", "G(4)", "BG(2,4)"] * 2
    return Architecture.from_choices("search_spaces.network:NetworkSpace", choices, given).build()


def vgg11_bn() -> nn.Module:
    network = torchvision.models.vgg11_bn()
    network.classifier = nn.Linear(512 * 7 * 7, 10)  # its own has 120 million weights
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "wide_resnet": (wide_resnet, (3, 8, 8)),
    "rewritten": (rewritten_wide_resnet, (3, 8, 8)),
    "resnet18": (torchvision.models.resnet18, (3, 64, 64)),
    "swapped_resnet18": (swapped_resnet18, (3, 32, 32)),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, (3, 32, 32)),
    "vgg11_bn": (vgg11_bn, (3, 32, 32)),
}


def make(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    build, size = NETWORKS[name]
    return trained(build(), size), size


READER = """
import importlib, pathlib, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ImportError(name + " is not to be used here")

sys.meta_path.insert(0, Refused())
import numpy as np
{load}
for line in sys.stdin:
    path, *batches = map(pathlib.Path, line.rstrip().split("|"))
    network = load(path)
    for batch in batches:
        np.save(str(batch) + ".out.npy", network(np.load(batch)))
    print("done", flush=True)
"""

LOAD = {
    "pt2": """
import torch

def load(path):
    network = torch.export.load(path).module()
    return lambda batch: network(torch.from_numpy(batch)).detach().numpy()
""",
    "onnx": """
import onnxruntime

def load(path):
    session = onnxruntime.InferenceSession(path)
    return lambda batch: session.run(None, {session.get_inputs()[0].name: batch})[0]
""",
    "safetensors": """
import torch

def load(path):
    sys.path.insert(0, str(path.parent))
    network = importlib.import_module(path.stem).load()
    assert not network.training
    return lambda batch: network(torch.from_numpy(batch)).detach().numpy()
""",
}
OURS = {"nni_blockswap", "nni", "torchvision", "timm", "search_spaces", "trial", "pytorch_lightning"}


class Elsewhere:
    """A process that has neither this package nor what it stands on, and runs what was written in one format."""

    def __init__(self, form: str) -> None:
        refused = OURS | ({"torch", "onnx"} if form == "onnx" else set())
        program = READER.replace("{refused}", repr(refused)).replace("{load}", LOAD[form])
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd="/",
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, path: Path, batches: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the file at ``path`` gives for the batches."""
        files = [path.with_name(f"batch{number}.npy") for number in range(len(batches))]
        for file, batch in zip(files, batches, strict=True):
            np.save(file, batch.numpy())
        self.process.stdin.write("|".join(map(str, [path, *files])) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", "see what the process wrote to stderr"
        return [torch.from_numpy(np.load(f"{file}.out.npy")) for file in files]

    def close(self) -> None:
        self.process.communicate(timeout=60)


def assert_equal_to_rounding(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < 1e-3 * float(ours.abs().max())

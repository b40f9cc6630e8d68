"""A LightningDataModule by its import path: in a search, a config's check, a trial; and in hand."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nni_blockswap as bs
from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.nni_format import to_nni
from nni_blockswap.cli import main
from nni_blockswap.cli.check import find_faults
from nni_blockswap.errors import BlockSwapError, ConfigError, DataError
from nni_blockswap.files import read_json, write_json
from nni_blockswap.spaces import cost_table
from nni_blockswap.tasks import make_task
from nni_blockswap.training import program
from tests.conftest import SMALL, WRN
from trial import distill

ROOT = Path(__file__).parents[2]
HERE = "tests.tasks.test_data_module"
SPACE_ARGS = [f"--space-arg={name}={value}" for name, value in SMALL.items()]


class Quarters(LightningDataModule):
    """Noise with one bright quarter, which is the class."""

    def __init__(self, count: int = 64, root: str | None = None) -> None:
        super().__init__()
        self.count, self.root = count, root

    def prepare_data(self) -> None:
        if self.root is not None and not Path(self.root).is_dir():
            raise FileNotFoundError(f"no folder {self.root}")

    def setup(self, stage: str) -> None:
        assert stage == "fit"
        images, labels = torch.randn(self.count, 1, 8, 8), torch.arange(self.count) % 4
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 4 * (label // 2) :][:, :4, 4 * (label % 2) :][..., :4] += 2.0
        self.examples = TensorDataset(images, labels)

    def train_dataloader(self) -> Any:
        return DataLoader(self.examples, 16, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.examples, 16)


class Rootless(Quarters):
    def __init__(self, count: int = 64) -> None:
        super().__init__(count)


DATA = ["--data", f"{HERE}:Quarters", "--data-option", "count=48"]


def test_a_search_and_a_trial_take_it_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["search", "--space", WRN, *SPACE_ARGS, *DATA, "--budget", "60%", "--samples", "3", "--batch-size", "24"]
    assert main([*command, "--device", "cpu", "--precision", "float32", "--out", str(tmp_path / "search")]) == 0
    best = Architecture.load(tmp_path / "search" / "best.json")
    assert best.provenance["data"] == f"{HERE}:Quarters"
    given = ["--architecture", str(tmp_path / "search" / "best.json"), *DATA, "--epochs", "2", "--batch-size", "16"]
    monkeypatch.setattr(sys, "argv", ["trial", *given, "--beta", "0", "--out", str(tmp_path / "student")])
    program.main("trial", distill.run)
    result = read_json(tmp_path / "student" / "result.json")
    assert (result["epochs"], result["metric"]["name"], 0 <= result["accuracy"] <= 1) == (2, "accuracy", True)


def config(folder: Path, **changes: Any) -> Path:
    content = yaml.safe_load((ROOT / "config.yml").read_text())
    content |= {"searchSpaceFile": str(folder / "space.json"), "trialCodeDirectory": str(ROOT)}
    write_json(folder / "space.json", to_nni(cost_table(WRN, SMALL)))
    arguments = {"space": WRN, "space_args": SMALL, "data": f"{HERE}:Quarters", "data_options": {"count": 48}}
    content["tuner"]["classArgs"] |= {**arguments, "batch_size": 24, "budget": "60%", **changes}
    content["tuner"]["codeDirectory"] = str(ROOT)
    content["trialCommand"] = f"python -m trial.distill --data {HERE}:Quarters --data-option count=48"
    (folder / "config.yml").write_text(yaml.safe_dump(content))
    return folder / "config.yml"


def test_a_config_names_it(tmp_path: Path) -> None:
    assert find_faults(config(tmp_path)) == []
    (fault,) = find_faults(config(tmp_path, data_options={"amount": 48}))
    assert "has no option 'amount'; it has count" in fault.sentence
    (fault,) = find_faults(config(tmp_path, data_root=str(tmp_path / "nowhere")))
    assert f"the data module Quarters fails: no folder {tmp_path / 'nowhere'}" in fault.sentence


def test_it_is_taken_in_hand_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip
    space = bs.swap_blocks(network, torch.zeros(1, 1, 8, 8))
    ranking = bs.search(space, Quarters(), budget="90%", at_most=True, samples=2, batch_size=24,
                        device="cpu", on_progress=lambda progress: None)  # fmt: skip
    result = bs.distill(ranking.best.build(), network, Quarters(), epochs=1, out=tmp_path, beta=0, kd=1.0)
    assert 0 <= result.metric <= 1


class Augmenting(Quarters):
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


def test_hooks_that_are_not_called_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    make_task(f"{HERE}:Quarters")
    assert not caplog.messages
    make_task(f"{HERE}:Augmenting")
    (message,) = caplog.messages
    assert "its own transfer_batch_to_device and on_after_batch_transfer, which is not called" in message


@pytest.mark.parametrize(
    ("name", "root", "options", "error", "sentence"),
    [
        ("Quarters", "/nowhere", {}, DataError, "the data module Quarters fails: no folder /nowhere"),
        ("Quarters", None, {"amount": 3}, ConfigError, "has no option 'amount'; it has count"),
        ("Quarters", None, {"count": "many"}, DataError, "the data module Quarters fails: "),
        ("Quarters", None, {"count": 8}, DataError, "gives no batch"),
        ("Rootless", "/tmp", {}, ConfigError, "takes no argument 'root' to give its folder to; leave it out"),
        ("Absent", None, {}, DataError, "cannot be imported"),
    ],
)
def test_what_is_wrong_with_one_is_told_in_a_sentence(
    name: str, root: str | None, options: dict[str, Any], error: type[BlockSwapError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        make_task(f"{HERE}:{name}", root, **options)

"""Checkpoints: damaged ones are told apart from good ones, foreign ones are read, wrong ones are named."""

from pathlib import Path

import pytest
import torch
from torch import nn

from nni_blockswap.errors import CheckpointError
from nni_blockswap.training.checkpoints import load_weights, read, save, to_resume, weights_of


class Harmful:
    def __reduce__(self):
        return (print, ("this ran",))


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    save({"epoch": 3, "state_dict": {"a": torch.arange(4)}}, tmp_path / "deep" / "x.ckpt")
    found = read(tmp_path / "deep" / "x.ckpt")
    assert found["epoch"] == 3
    assert torch.equal(found["state_dict"]["a"], torch.arange(4))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04half of a zip"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.ckpt' cannot be read, it may be damaged"):
        read(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": Harmful()}, tmp_path / "x.ckpt")
    with pytest.raises(
        CheckpointError, match=r"holds more than tensors and plain values, .*state_dict alone\.$"
    ) as said:
        read(tmp_path / "x.ckpt")
    assert str(said.value).isprintable()  # no escape codes
    assert "this ran" not in capsys.readouterr().out


def test_resumption_takes_the_last_good_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    assert to_resume(tmp_path, said.append) is None
    save({"epoch": 4, "figures": {}}, tmp_path / "best.ckpt")
    save({"epoch": 6, "figures": {}}, tmp_path / "last.ckpt")
    assert to_resume(tmp_path, said.append).path == tmp_path / "last.ckpt"
    assert "after epoch 7" in said[-1]

    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    assert to_resume(tmp_path, said.append).path == tmp_path / "best.ckpt"
    assert "last.ckpt" in said[-2]
    assert "damaged" in said[-2]
    assert "after epoch 5" in said[-1]

    (tmp_path / "best.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read; delete last\.ckpt and best\.ckpt"):
        to_resume(tmp_path, said.append)


@pytest.mark.parametrize("prefix", ["", "network.", "model.", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_are_found_in_plain_and_wrapped_checkpoints(prefix: str, wrapped: bool) -> None:
    network = nn.Linear(2, 3)
    state = {prefix + name: value for name, value in network.state_dict().items()}
    found = weights_of({"epoch": 1, "state_dict": state} if wrapped else state)
    assert found.keys() == {"weight", "bias"}
    load_weights(nn.Linear(2, 3), found, "x")


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"epoch": "two", "figures": {}}, {"epoch": 2}, [1]])
def test_a_checkpoint_of_something_else_is_passed_over(tmp_path: Path, content: object) -> None:
    said: list[str] = []
    save(content, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        to_resume(tmp_path, said.append)
    save({"epoch": 4, "figures": {}}, tmp_path / "best.ckpt")
    assert to_resume(tmp_path, said.append).path == tmp_path / "best.ckpt"
    assert "last.ckpt' is not one that a training here has written" in said[-2]


@pytest.mark.parametrize("prefix", ["network.", "model.", "module."])
def test_a_lightning_modules_other_parts_are_left_out(prefix: str) -> None:
    state = {prefix + name: value for name, value in nn.Linear(2, 3).state_dict().items()}
    state["criterion.weight"] = torch.ones(3)
    found = weights_of({"pytorch-lightning_version": "2.0.0", "state_dict": state})
    assert found.keys() == {"weight", "bias"}
    assert weights_of({"state_dict": state}).keys() == state.keys()  # another's plain network may have such names


@pytest.mark.parametrize("content", [[], {}, {"epoch": 3}, {"state_dict": {}}])
def test_a_checkpoint_without_weights_is_refused(content: object) -> None:
    with pytest.raises(CheckpointError, match="holds a state_dict"):
        weights_of(content)


def test_weights_that_do_not_fit_are_named_in_one_sentence() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match=r"'t\.pt' do not fit .*: missing 1\.weight, 1\.bias; unexpected extra;"):
        load_weights(network, {**nn.Sequential(nn.Linear(2, 3)).state_dict(), "extra": torch.zeros(1)}, "t.pt")
    with pytest.raises(CheckpointError, match=r"size mismatch for 1\.weight: .* and 1 more; a teacher is"):
        load_weights(network, nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)).state_dict(), "t.pt")

"""Checkpoints: damaged ones are told apart from good ones, foreign ones are read, wrong ones are named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nni_blockswap.errors import CheckpointError, StateError
from nni_blockswap.training.checkpoints import read, save, to_resume


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


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"epoch": "two", "figures": {}}, {"epoch": 2}, [1]])
def test_a_checkpoint_of_something_else_is_passed_over(tmp_path: Path, content: object) -> None:
    said: list[str] = []
    save(content, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        to_resume(tmp_path, said.append)
    save({"epoch": 4, "figures": {}}, tmp_path / "best.ckpt")
    assert to_resume(tmp_path, said.append).path == tmp_path / "best.ckpt"
    assert "last.ckpt' is not one that a training here has written" in said[-2]


def test_a_flipped_bit_anywhere_is_seen_or_does_no_harm(tmp_path: Path) -> None:
    """128 flips spread over the file: each is refused, or what is read is what was written."""
    state = {"a": torch.arange(200, dtype=torch.float32), "b": torch.ones(3, 3)}
    save({"epoch": 4, "figures": {"accuracy": 0.5}, "state_dict": state}, tmp_path / "last.ckpt")
    whole = (tmp_path / "last.ckpt").read_bytes()
    refused = 0
    for number in range(128):
        damaged = bytearray(whole)
        damaged[number * len(whole) // 128] ^= 1 << number % 8
        (tmp_path / "last.ckpt").write_bytes(damaged)
        try:
            found = read(tmp_path / "last.ckpt")
        except CheckpointError:
            refused += 1
        else:
            assert (found["epoch"], found["figures"]) == (4, {"accuracy": 0.5})
            assert all(torch.equal(found["state_dict"][name], value) for name, value in state.items())
    assert refused > 32  # the archive pads its parts


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc", "a\0b"])
def test_what_is_no_checkpoint_at_all_is_refused_in_a_sentence(path: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read, it may be damaged"):
        read(path)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(read(tmp_path / "x.safetensors")["weight"], torch.ones(2))
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path / "x.safetensors")


def test_another_runs_checkpoint_is_never_continued(tmp_path: Path) -> None:
    save({"epoch": 4, "figures": {}, "run": "other"}, tmp_path / "best.ckpt")
    with pytest.raises(StateError, match=r"best\.ckpt' is another run's; give this one a folder of its own, or delete"):
        to_resume(tmp_path, print, "mine")
    assert to_resume(tmp_path, print, "other").epoch == 5


@pytest.mark.parametrize("figures", ["x", [0.5], {"accuracy": "high"}, {"accuracy": torch.ones(1)}, {3: 0.5}])
def test_figures_of_another_kind_are_no_figures(figures: object, tmp_path: Path) -> None:
    save({"epoch": 4, "figures": figures}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        to_resume(tmp_path, print)

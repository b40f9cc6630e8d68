"""``blockswap library`` is killed by SIGKILL, again and again, and in the end has learned the same, bit for bit."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

from nni_blockswap.cli import main
from nni_blockswap.library import school, store
from tests.conftest import SMALL, WRN

MOMENTS = [
    ("library.json", 1, False),
    ("block_01.state.safetensors", 1, False),  # block_00 has made a step more than it
    ("block_00.state.safetensors", 2, True),
    ("block_01.safetensors", 1, False),  # block_00 is finished
    ("block_02.state.safetensors", 1, True),
    ("block_01.safetensors", 1, True),  # what it was while it learned is still there
    ("errors.csv", 1, False),
]
"""The n-th time that a process gives a file its name, and whether it is killed after that or before."""


def learn(teacher: Path, out: Path, moment: tuple[str, int, bool] | None, *words: str) -> None:
    """Build the library in a process that keeps its state after every step and kills itself at a moment."""
    torch.set_num_threads(1)
    school.SAVE_EVERY = 0.0
    replace, times = os.replace, 0

    def replaced(source: Path, target: Path) -> None:
        nonlocal times
        times += moment is not None and target.name == moment[0]
        if moment is not None and (target.name, times, False) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if moment is not None and (target.name, times, True) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replaced  # type: ignore[assignment]
    space = [f"--space-arg={name}={json.dumps(value)}" for name, value in {**SMALL, "extra": ["W(1/2)"]}.items()]
    images = ["--data", "digits", "--data-option", "image_size=8", "--batch-size", "32", "--held-out", "32"]
    command = ["library", "--space", WRN, *space, "--teacher", str(teacher), *images, "--steps", "3", "--device", "cpu"]
    sys.exit(main([*command, *words, "--out", str(out)]))


def test_a_killed_library_is_the_same_in_the_end(teacher: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")  # which imports torch once
    context.set_forkserver_preload([__name__])

    def ended(out: str, moment: tuple[str, int, bool] | None, *words: str) -> int | None:
        process = context.Process(target=learn, args=(teacher, tmp_path / out, moment, *words))
        process.start()
        process.join()
        return process.exitcode

    assert ended("whole", None) == 0
    for moment in MOMENTS:
        assert (moment, ended("killed", moment, "--blocks-at-once", "2")) == (moment, -signal.SIGKILL)
    assert ended("killed", None, "--blocks-at-once", "2") == 0
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    weights = {f"block_0{number}.safetensors" for number in range(3)}
    assert {path.name for path in killed.iterdir() if "block_" in path.name} == weights  # and nothing half-written
    for name in ("errors.csv", "library.json"):
        assert (killed / name).read_text() == (whole / name).read_text()
    for path in whole.glob("*.safetensors"):
        tensors, about = store.read(killed / path.name)
        expected, said = store.read(path)
        assert about == said
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in tensors.items())

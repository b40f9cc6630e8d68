"""A disk that is full or cannot be written to: one sentence; and once it is in order, the same command goes on."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nni_blockswap.training.checkpoints import read
from tests.fuzz.valid import SEARCH, TRAIN

ROOT = Path(__file__).parents[2]
PYTHON = [sys.executable, "-W", "ignore", "-m"]
TWICE = """
mount -t tmpfs -o size=8m tmpfs {disk} && mkdir {disk}/out && mount -o remount,{state} {disk} || exit
{command}; echo ended $?
mount -o remount,rw,size=8m {disk}
{command}; echo ended $?
cp -r {disk}/out {kept}
"""
"""A disk of its own, which nobody else sees; first in a bad state, then in order."""

pytestmark = [
    pytest.mark.slow,  # each starts Python twice
    pytest.mark.skipif(
        not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0,
        reason="needs a disk of its own, which this machine does not let a user mount (unshare -rm)",
    ),
]


@pytest.fixture
def twice(tmp_path, monkeypatch):
    """A function: command, state of the disk -> what it left on the disk and said at first, once it went on to its
    end."""

    def run(command, state):
        disk, kept = tmp_path / "disk", tmp_path / "kept"
        disk.mkdir()
        words = shlex.join([*PYTHON, *command, "--out", str(disk / "out")])
        script = TWICE.format(disk=disk, kept=kept, state=state, command=words)
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
        )
        ends = [line for line in done.stdout.splitlines() if line.startswith("ended ")]
        assert ends == ["ended 2", "ended 0"], done.stdout + done.stderr
        progress = ("engine: ", "search: ")
        sentences = [
            line for line in done.stderr.splitlines() if not line.startswith(progress) and " candidates, " not in line
        ]
        assert len(sentences) == 1, sentences
        return kept, sentences[0]

    return run


STATES = ["ro", "size=4k", "size=12k", "size=20k", "size=28k"]


@pytest.mark.parametrize("state", STATES)
def test_a_search(state, twice, tmp_path):
    command = ["nni_blockswap", *SEARCH, "--at-most", "--samples", "60"]
    subprocess.run([*PYTHON, *command, "--out", str(tmp_path / "whole")], cwd=ROOT, capture_output=True, check=True)
    kept, sentence = twice(command, state)
    assert ("Read-only file system" if state == "ro" else "No space left on device") in sentence
    assert (kept / "ranking.csv").read_text() == (tmp_path / "whole" / "ranking.csv").read_text()
    keys = [json.loads(line)["choices"] for line in (kept / "scores.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 60


@pytest.mark.parametrize("state", ["ro", "size=4k", "size=100k", "size=600k", "size=700k"])
def test_a_training(state, twice, workshop, tmp_path):
    command = ["trial.distill", "--architecture", str(workshop / "search" / "best.json"), *TRAIN, "--epochs", "2"]
    command += ["--teacher-dir", str(workshop / "teachers")]
    subprocess.run([*PYTHON, *command, "--out", str(tmp_path / "whole")], cwd=ROOT, capture_output=True, check=True)
    kept, sentence = twice(command, state)
    assert ("Read-only file system" if state == "ro" else "No space left on device") in sentence
    weights = read(tmp_path / "whole" / "weights.pt")
    assert all(torch.equal(value, weights[name]) for name, value in read(kept / "weights.pt").items())

"""A search goes on from what its folder keeps, and takes no scores of another one."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_blockswap.architecture import Architecture
from nni_blockswap.conversation import Progress
from nni_blockswap.errors import StateError
from nni_blockswap.scoring.proxies import Score
from nni_blockswap.searching import SearchSettings, search
from nni_blockswap.spaces import _prepare
from search_spaces.wide_resnet import WideResNetSpace
from tests.conftest import WRN
from tests.test_searching import SETTINGS, SPACE_ARGS, run


@pytest.mark.parametrize("precision", ["float32", "bf16"])  # by default it depends on the processor
def test_a_search_goes_on_where_it_was_and_ends_the_same(precision: str, tmp_path: Path) -> None:
    settings = {"inits": 2, "precision": precision}
    whole = run(tmp_path / "whole", **settings)
    lines = (tmp_path / "whole/scores.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 24
    part = tmp_path / "part"
    part.mkdir()
    (part / "search.json").write_bytes((tmp_path / "whole/search.json").read_bytes())
    (part / "scores.jsonl").write_text("".join(lines[:7]) + lines[7][:20])
    fresh: list[Progress] = []
    search(SearchSettings(**SETTINGS, **settings), part, fresh.append)  # type: ignore[arg-type]
    assert [progress.done for progress in fresh] == list(range(8, 25))
    assert (part / "ranking.csv").read_bytes() == (tmp_path / "whole/ranking.csv").read_bytes()
    assert run(part, **settings) == whole  # nothing left to score


def test_what_is_damaged_is_scored_anew_once_it_is_deleted(tmp_path: Path) -> None:
    whole = run(tmp_path)
    journal, ranking = tmp_path / "scores.jsonl", (tmp_path / "ranking.csv").read_bytes()
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:4], lines[4].replace("crc", "brc"), *lines[5:]]))
    with pytest.raises(StateError, match=r"line 5 of .*delete the line, or the file, and start again"):
        run(tmp_path)
    assert (tmp_path / "ranking.csv").read_bytes() == ranking
    journal.write_text("".join([*lines[:4], *lines[5:]]))
    assert run(tmp_path) == whole
    assert sorted(journal.read_text().splitlines(keepends=True)) == sorted(lines)
    journal.unlink()
    assert run(tmp_path) == whole


def test_more_samples_reuse_the_scores(tmp_path: Path) -> None:
    run(tmp_path, samples=12)
    fresh: list[Progress] = []
    search(SearchSettings(**{**SETTINGS, "budgets": ["30K", "25K"]}), tmp_path, fresh.append)  # type: ignore[arg-type]
    assert fresh[0].done == 13


def test_other_settings_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, precision="float32")
    for changes, sentence in (
        ({"batch_size": 8}, "batch_size was 16, now 8"),
        ({"proxy": "l2_norm"}, "proxy was 'fisher', now 'l2_norm'"),
        ({"precision": "float64"}, "precision was 'float32', now 'float64'"),
    ):
        with pytest.raises(StateError, match=sentence):
            run(tmp_path, **{"precision": "float32", **changes})
    # The device that every machine has beside its processor; nothing is computed there, and nobody can ask for it.
    monkeypatch.setattr("nni_blockswap.scoring.scorer.resolve_device", lambda name: torch.device("meta"))
    with pytest.raises(StateError, match="device was 'cpu', now 'meta'"):
        run(tmp_path, precision="float32")


class Weights:
    """All weights, added up."""

    name, higher_is_better, needs_weight_gradients = "weights", True, False

    def measure(self, network: Any, task: object, batch: object) -> Score:
        return Score(float(sum(weight.sum() for weight in network.active_parameters())))


class Squares(Weights):
    def measure(self, network: Any, task: object, batch: object) -> Score:
        return Score(float(sum(weight.square().sum() for weight in network.active_parameters())))


class Own(WideResNetSpace):
    def __init__(self) -> None:
        super().__init__(depth=10, width=1, in_channels=1, image_size=16)


class Wider(WideResNetSpace):
    def __init__(self) -> None:
        super().__init__(depth=10, width=2, in_channels=1, image_size=16)


def test_scores_by_code_of_ones_own_are_not_taken_for_those_by_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = sys.modules[__name__]
    own = {"space": f"{__name__}:Own", "space_args": {}, "proxy": f"{__name__}:Weights", "budgets": ["50%"]}
    first = run(tmp_path, **own)
    assert run(tmp_path, **own) == first
    with monkeypatch.context() as changed:
        changed.setattr(here, "Weights", Squares)
        with pytest.raises(StateError, match=r"proxy_digest was '.*', now '.*'"):
            run(tmp_path, **own)
    monkeypatch.setattr(here, "Own", Wider)
    monkeypatch.setattr("nni_blockswap.spaces._prepare", _prepare.__wrapped__)  # as in another process
    with pytest.raises(StateError, match=r"costs_digest was '.*', now '.*'"):
        run(tmp_path, **own)


KILLED_AT_THE_TWENTIETH_SCORE = """
import os, signal, sys
from nni_blockswap.cli import main
from nni_blockswap.results.journal import Journal
add = Journal.add
def add_and_die(journal, *score):
    add(journal, *score)
    if len(journal) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.add = add_and_die
sys.exit(main())
"""


def test_killed_with_kill_9_and_started_again(tmp_path: Path) -> None:
    command = ["search", "--space", WRN, "--data", "digits"]
    for name, value in SPACE_ARGS.items():
        command += ["--space-arg", f"{name}={value}"]
    command += ["--budget", "30K", "--samples", "60", "--batch-size", "64", "--device", "cpu", "--out"]
    python = [sys.executable, "-W", "ignore"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [*python, "-c", KILLED_AT_THE_TWENTIETH_SCORE, *command, str(tmp_path / "killed")], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    scores = tmp_path / "killed/scores.jsonl"
    before = scores.read_bytes()
    assert before.count(b"\n") == 20
    scores.write_bytes(before + before[: before.find(b"\n") // 2])  # as if it had died within a line
    for folder in ("killed", "whole"):
        done = subprocess.run(
            [*python, "-m", "nni_blockswap", *command, str(tmp_path / folder)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    assert (tmp_path / "killed/ranking.csv").read_bytes() == (tmp_path / "whole/ranking.csv").read_bytes()
    assert scores.read_bytes().startswith(before)
    best = Architecture.load(tmp_path / "whole/best.json")
    assert "best of 60" in done.stdout
    assert f"({1 - best.params / 30_000:.1%} of params unused)" in done.stdout

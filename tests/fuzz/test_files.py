"""Files that are wrong somewhere: what is read of them is what was written, or a sentence says that it is not."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from nni_blockswap.architecture import Architecture
from nni_blockswap.files import read_json
from nni_blockswap.training.checkpoints import read
from tests.fuzz.harness import examine, run_blockswap, run_trial
from tests.fuzz.mutations import damage, damaged, mutated
from tests.fuzz.valid import CONFIG, SEARCH, SPACE, TRAIN
from trial import distill

AGAIN = ["--architecture", "search/best.json", *TRAIN]


def spoilt(path: Path) -> st.SearchStrategy[bytes]:
    """Contents that a file could have in place of what it has."""
    content = path.read_bytes()
    some = damaged(len(content)).map(partial(damage, content))
    if path.suffix != ".json":
        return some
    return st.one_of(some, mutated(json.loads(content)).map(lambda changed: json.dumps(changed).encode()))


def spoilt_in(folder: Path, *names: str) -> st.SearchStrategy[tuple[str, bytes]]:
    """(name, content) of one of the files."""
    return st.sampled_from(names).flatmap(lambda name: spoilt(folder / name).map(lambda content: (name, content)))


def test_search_space_files(count, workshop):
    def show(content: bytes) -> None:
        Path("space.json").write_bytes(content)
        ended = run_blockswap("space", *SPACE, "--search-space-file", "space.json", "--json")
        if ended.is_valid:
            shown, listed = json.loads(ended.out), json.loads(content)
            assert shown.keys() == CONFIG["searchSpace"].keys()
            for label, entry in listed.items():
                assert len(shown[label]["_value"]) == len(set(entry["_value"]))

    examine(spoilt(workshop / "space.json"), show, count)


def test_architectures(count, workshop):
    def show(content: bytes) -> None:
        Path("best.json").write_bytes(content)
        if run_blockswap("show", "best.json").is_valid:
            one = Architecture.load("best.json", allow=())
            again = Architecture.from_choices(one.space, one.choices, one.space_args)
            assert (one.params, one.macs) == (again.params, again.macs)

    examine(spoilt(workshop / "search" / "best.json"), show, count)


def test_journals(count, workshop):
    names = "scores.jsonl", "scores.jsonl", "search.json", "best.json", "ranking.csv"

    def search(case: tuple[str, bytes]) -> None:
        shutil.copytree(workshop / "search", "search")
        (Path("search") / case[0]).write_bytes(case[1])
        if run_blockswap(*SEARCH, "--out", "search").is_valid:
            rankings = [Path(home, "search", "ranking.csv").read_text() for home in (".", workshop)]
            assert rankings[0] == rankings[1]

    examine(spoilt_in(workshop / "search", *names), search, count)


def test_rankings(count, workshop):
    def draw(case: tuple[str, bytes]) -> None:
        shutil.copytree(workshop / "search", "search")
        (Path("search") / case[0]).write_bytes(case[1])
        if run_blockswap("show", "search").is_valid:
            assert Path("search", "preferences.png").stat().st_size > 0

    examine(spoilt_in(workshop / "search", "best.json", "ranking.csv"), draw, count)


def test_results(count, workshop):
    def report(case: tuple[str, bytes]) -> None:
        shutil.copytree(workshop / "trial", "trial")
        (Path("trial") / case[0]).write_bytes(case[1])
        if run_blockswap("report", "trial", "--out", "report", "--latency-batch", "0").is_valid:
            for row in csv.DictReader(Path("report", "report.csv").read_text().splitlines()):
                assert 0 <= float(row["error"]) <= 100
                assert float(row["params"]) >= 0
        if run_blockswap("export", "trial", "--out", "best").is_valid:
            assert Path("best", "weights.pt").read_bytes() == Path("trial", "weights.pt").read_bytes()

    examine(
        spoilt_in(workshop / "trial", "result.json", "result.json", "architecture.json", "settings.json"), report, count
    )


@pytest.fixture(scope="module")
def longer(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Weights of the workshop's trial after a second epoch."""
    home = tmp_path_factory.mktemp("longer")
    shutil.copytree(workshop, home, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert train("--epochs", "2")
    return read(home / "trial" / "weights.pt")


def train(*more: str) -> bool:
    return run_trial(distill, *AGAIN, "--teacher-dir", "teachers", "--out", "trial", *more).is_valid


def same(weights: Any) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in read(Path("trial", "weights.pt")).items())


def test_checkpoints(count, workshop, longer):
    def go_on(case: list[tuple[str, bytes]]) -> None:
        shutil.copytree(workshop, ".", dirs_exist_ok=True)
        for name, content in case:
            Path("trial", name).write_bytes(content)
        if train("--epochs", "2"):
            assert read_json(Path("trial", "result.json"))["epochs"] == 2
            assert same(longer)

    of_trial = spoilt_in(workshop / "trial", "last.ckpt", "best.ckpt", "last.ckpt", "best.ckpt", "settings.json")
    examine(st.lists(of_trial, min_size=1, max_size=2), go_on, count)


def test_teachers(count, workshop):
    (teacher,) = (workshop / "teachers").glob("*.pt")
    expected = read(workshop / "trial" / "weights.pt")

    def learn(content: bytes) -> None:
        shutil.copytree(workshop / "search", "search")
        Path("teacher.pt").write_bytes(content)
        if train("--teacher", "teacher.pt"):
            assert same(expected)

    examine(spoilt(teacher), learn, count)

"""Command lines that are wrong somewhere, of every command that starts no process, and of trials."""

import math
import shutil

import pytest
from hypothesis import strategies as st

from nni_blockswap.cli import parser
from nni_blockswap.library.library import Library
from tests.fuzz.harness import examine, run_blockswap, run_trial
from tests.fuzz.mutations import miswritten
from tests.fuzz.valid import DETECT, IMAGES, SCORE, SEARCH, SPACE, TRAIN
from trial import detect, distill, teacher

COMMANDS = [
    ["space", *SPACE, "--budget", "60%", "--tolerance", "0.1", "--search-space-file", "space.json", "--json"],
    ["space", "--model", "torchvision.models:resnet18", "--model-arg", "num_classes=10", "--input-size", "3,64,64"],
    [*SEARCH, "--method", "evolution", "--inits", "2", "--seed", "3", "--at-most", "--no-augment", "--out", "new"],
    [*SEARCH, "--proxy", "taylor+naswot", "--minibatches", "2", "--precision", "float32", "--out", "new"],
    ["front", *SPACE, *IMAGES, *SCORE, "--budgets", "40%..70%", "--points", "2", "--samples", "3", "--out", "new"],
    ["sensitivity", *SPACE, *IMAGES, *SCORE, "--substitute", "G(4)", "--device", "cpu", "--out", "new"],
    ["show", "search/best.json", "--out", "new.png"],
    ["latency", "search/best.json", "--batch-size", "1", "--threads", "1"],
    ["check", "config.yml"],
    ["export", "trial", "--fold-bn", "--format", "safetensors", "--out", "new"],
    ["report", "trial", "--latency-batch", "0", "--table", "2", "--out", "new"],
    ["status", "trial"],
    ["init", "mine"],
    ["rank-study", "trained.csv", *SPACE, *IMAGES, *SCORE, "--proxies", "fisher", "--train-minibatches", "1", "2",
     "--out", "new"],
]  # fmt: skip
TAUGHT = ["--teacher", "teacher.pt", "--steps", "2", "--batch-size", "8", "--held-out", "8", "--out", "new"]
LIBRARIES = [
    ["library", *SPACE, *IMAGES, *TAUGHT, "--lr", "0.01", "--weight-decay", "0.01", "--seed", "1"],
    ["library", *SPACE, *IMAGES, *TAUGHT, "--device", "cpu", "--precision", "bf16", "--blocks-at-once", "1"],
    ["library", "--model", "tests.library.own:own", "--input-size", "1,8,8", *IMAGES, *TAUGHT[2:]],
]
STUDENT = ["--architecture", "search/best.json", "--teacher-dir", "teachers", *TRAIN, "--out", "new"]
TRIALS = [
    (distill, [*STUDENT, "--beta", "10", "--kd", "0.5", "--lr", "0.1", "--momentum", "0.9", "--weight-decay", "5e-4"]),
    (distill, [*STUDENT, "--schedule", "step", "--milestones", "1", "--warmup", "1", "--clip", "1", "--ema", "0.9"]),
    (distill, [*STUDENT, "--init", "teacher", "--optimizer", "adamw", "--accumulate", "2", "--recipe", '{"lr": 0.2}']),
    (distill, [*STUDENT, "--method", "l1_pruning", "--nonzero", "9000", "--seed", "1", "--attention-points", "stage1"]),
    (teacher, [*SPACE, "--teacher-dir", "new", *IMAGES, "--batch-size", "16", "--epochs", "1", "--limit-steps", "1"]),
]

DETECTORS = [
    ["--architecture", "classifier.json", *DETECT, "--lr", "0.01", "--momentum", "0.9", "--clip", "1", "--out", "new"],
    ["--architecture", "classifier.json", *DETECT, "--milestones", "1", "2", "--method", "single", "--variant", "G(N)",
     "--weight-decay", "1e-4", "--seed", "3", "--precision", "bf16-mixed", "--out", "new"],
]  # fmt: skip


@pytest.fixture
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where NNI keeps its list of experiments


@pytest.mark.slow  # all of them, twenty
@pytest.mark.usefixtures("_home")
def test_nothing_is_wrong_before(workshop, detectors, tmp_path, monkeypatch):
    """Else what is tried below would be refused for one reason alone."""
    commands = [("blockswap", words) for words in [*COMMANDS, *LIBRARIES]]
    trials = [*TRIALS, *((detect, words) for words in DETECTORS)]
    for number, (program, words) in enumerate([*commands, *trials]):
        monkeypatch.chdir(shutil.copytree(workshop, tmp_path / str(number)))
        shutil.copytree(detectors, ".", dirs_exist_ok=True)
        ended = run_blockswap(*words) if program == "blockswap" else run_trial(program, *words)
        assert ended.code == 0, (words, ended.err)


@pytest.mark.usefixtures("_home")
def test_commands(count, workshop):
    def run(words: list[str]) -> None:
        shutil.copytree(workshop, ".", dirs_exist_ok=True)
        _ = run_blockswap(*words).is_valid

    examine(st.sampled_from(COMMANDS).flatmap(miswritten), run, count)


def test_libraries(count, workshop):
    def build(words: list[str]) -> None:
        shutil.copy(workshop / "teacher.pt", "teacher.pt")
        if run_blockswap(*words).is_valid:
            for errors in Library.load(parser().parse_args(words).out).errors.values():
                assert all(0 <= one.value < math.inf for one in errors.values())

    examine(st.sampled_from(LIBRARIES).flatmap(miswritten), build, count)


def test_trials(count, workshop):
    def run(case) -> None:
        shutil.copytree(workshop, ".", dirs_exist_ok=True)
        _ = run_trial(case[0], *case[1]).is_valid

    cases = st.sampled_from(TRIALS).flatmap(lambda one: st.tuples(st.just(one[0]), miswritten(one[1])))
    examine(cases, run, count)


def test_detectors(count, detectors):
    def train(words: list[str]) -> None:
        shutil.copytree(detectors, ".", dirs_exist_ok=True)
        _ = run_trial(detect, *words).is_valid

    examine(st.sampled_from(DETECTORS).flatmap(miswritten), train, count)

"""What a trial refuses, and networks that it does not publish."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nni_blockswap.architecture import Architecture
from nni_blockswap.training import distillation_trial
from search_spaces.wide_resnet import WideResNetSpace
from tests.conftest import WRN
from tests.trial.starting import ALONE, ROOT, files_in, run_here
from trial import teacher


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--out DIR says where"),
        (["--out", "{tmp}/o"], "--architecture FILE says what to train"),
        (["--out", "{tmp}/o", "--architecture", "{tmp}/none.json"], "no architecture can be read from"),
        (["--beta", "-1"], "--beta must not be negative"),
        (["--data", "mnist"], "no data set 'mnist'"),
        (["--data-option", "colour=red"], "no option 'colour'"),
        (["--devices", "two"], "--devices is a number of devices or 'auto', not 'two'"),
        (
            ["--devices", "2147483648"],
            "--devices is a number of devices or 'auto', not '2147483648'; 1,024 is the most",
        ),
        (["--devices", "9" * 5000], "--devices is a number of devices or 'auto', not '9999"),
        (["--precision", "bf16-true"], "--precision is one of auto, 32-true, 16-mixed, bf16-mixed, not 'bf16-true'"),
        (["--precision", "64-true"], "--precision is one of .*, not '64-true'"),
        (["--teacher-epochs", "0"], "--teacher-epochs must be above 0, not 0"),
        (["--method", "snip"], "--nonzero says how many parameters snip keeps"),
        (["--init", "teacher=teacher.pt"], "--init teacher takes nothing beside it, not 'teacher=teacher.pt'"),
        (["--workers", "-1"], "--workers must not be negative, as -1 is"),
        (["--workers", "100000"], "--workers is at most 1,024, not 100000"),
        (["--limit-steps", "0"], "--limit-steps must be above 0, not 0"),
        (
            ["--limit-steps", "1" + "0" * 400],
            "--limit-steps must be above 0, not 1000.*, and at most 1,000,000,000,000",
        ),
    ],
)
def test_faults_end_in_one_sentence(
    arguments: list[str], sentence: str, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments if "{tmp}/o" in arguments or not arguments else [*trained, "--out", "{tmp}/o", *arguments]
    with pytest.raises(SystemExit, match=f"^trial: .*{sentence}") as exit_:
        run_here(monkeypatch, [text.format(tmp=tmp_path) for text in given])
    assert "\n" not in str(exit_.value)


@pytest.mark.slow  # starts two processes: half a minute
def test_a_diverged_run_of_two_processes_says_so_once(trained: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trial.distill", *trained, "--devices", "2", "--out", str(tmp_path / "out")]
    ended = subprocess.run([*command, "--lr", "1e20"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert ended.stderr.count("no longer finite") == 1, ended.stderr
    assert "Traceback" not in ended.stderr  # Lightning or gloo may say that a process is gone


def test_a_teacher_needs_to_know_its_space(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="--model MODULE:FUNCTION or --architecture FILE says whose teacher"):
        run_here(monkeypatch, ["--data", "digits"], teacher)
    with pytest.raises(SystemExit, match="--space-arg: write NAME=VALUE, not 'depth'"):
        run_here(monkeypatch, ["--data", "digits", "--space", WRN, "--space-args", "depth"], teacher)


@pytest.mark.parametrize(
    ("points", "sentence"), [((), "it names none; name some, or use --beta 0"), (("stage9",), "stage9")]
)
def test_attention_points_are_looked_at_before_a_teacher_is_trained(
    points: tuple[str, ...], sentence: str, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WideResNetSpace, "attention_points", points)
    monkeypatch.setattr(distillation_trial, "find_teacher", lambda *_: pytest.fail("a teacher was asked for"))
    with pytest.raises(SystemExit, match=sentence):
        run_here(monkeypatch, [*trained, "--out", str(tmp_path / "out")])


def test_a_classifier_is_not_trained_on_detections(
    trained: list[str], tmp_path: Path, coco_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = trained[:4]
    with pytest.raises(SystemExit, match="WideResNetSpace classify, and coco is a data set for detection"):
        run_here(monkeypatch, [*here, "--data", "coco", "--data-root", str(coco_folder), "--out", str(tmp_path / "o")])


@pytest.mark.parametrize(
    "options", ["--lr 1e30", "--lr 1e30 --limit-steps 1", "--lr 1e30 --limit-steps 1 --ema 0.5 --optimizer adamw"]
)
def test_a_diverged_network_is_neither_kept_nor_published(
    options: str, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one step an epoch no loss is looked at after it: weights and validation tell."""
    arguments = [*trained, "--out", str(tmp_path / "out"), "--beta", "0", *options.split()]
    with pytest.raises(
        SystemExit, match=r"^trial: the (loss|weights) (is|are) no longer finite in epoch 1; lower --lr"
    ):
        run_here(monkeypatch, arguments)
    assert not files_in(tmp_path / "out") & {"result.json", "weights.pt", "last.ckpt", "best.ckpt", "settings.json"}


def test_a_teacher_of_no_numbers_teaches_nobody(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(tmp_path / "teacher.pt", weights_only=True)
    state["fc.bias"][3] = float("inf")
    torch.save(state, tmp_path / "teacher.pt")
    with pytest.raises(SystemExit, match=r"teacher\.pt' are not all finite numbers: fc\.bias"):
        run_here(monkeypatch, [*trained, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("teacher", "sentence"),
    [
        ("/etc/passwd", "the checkpoint '/etc/passwd' cannot be read, it may be damaged"),
        ("/etc", "the checkpoint '/etc' cannot be read"),
        ("torchvision:ResNet18_Weights.nope", r"torchvision has no weights called 'ResNet18_Weights\.nope': 'nope'\."),
        ("torchvision:", "torchvision has no weights called ''"),
        ("timm:nope", "timm has no weights for a model called 'nope'|needs the package timm"),
    ],
)
def test_what_is_no_teacher_is_refused_in_a_sentence(
    teacher: str, sentence: str, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=f"^trial: {sentence}") as ended:
        run_here(monkeypatch, [*trained, "--out", str(tmp_path / "out"), "--teacher", teacher])
    assert "\n" not in str(ended.value)


def test_a_network_that_keeps_what_is_no_tensor_is_refused_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"model": "tests.library.own:Keeping", "input_size": [1, 8, 8], "extra": ["W(1/2)"]}
    Architecture.original("nni_blockswap.blocks.network:NetworkSpace", arguments).save(tmp_path / "student.json")
    command = ["--architecture", str(tmp_path / "student.json"), "--allow", "tests", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"keeps '_extra_state' \(get_extra_state\), and checkpoints hold tensors"):
        run_here(monkeypatch, [*command, *ALONE, "--beta", "0"])
    assert not list((tmp_path / "out").rglob("*.ckpt"))


def test_results_that_cannot_be_written_are_not_said_to_be_there(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(distillation_trial, "publish", full)
    with pytest.raises(SystemExit, match=r"^trial: No space left on device; what was written before is kept"):
        run_here(monkeypatch, [*trained, "--out", str(tmp_path / "out"), "--beta", "0", "--epochs", "1"])
    assert "results in" not in capsys.readouterr().out

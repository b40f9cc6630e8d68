"""The trial as a whole, under NNI and alone."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import TrainingError
from nni_blockswap.files import read_json
from nni_blockswap.results.trial import read_result
from nni_blockswap.tasks.loader import BY_LOSS, LossTask
from nni_blockswap.training import options
from nni_blockswap.training.checkpoints import read
from nni_blockswap.training.classification import ImageTraining
from tests.conftest import SMALL, WRN
from tests.trial.starting import ALONE, RECIPE, ROOT, STUDENT, run_here
from trial import distill


def test_under_nni(tmp_path: Path) -> None:
    trial = tmp_path / "exp" / "environments" / "local-env" / "trials" / "Ab1"
    trial.mkdir(parents=True)
    parameters = {
        **STUDENT.choices, "space": WRN, "space_args": SMALL, "params": 1, "macs": 2, "score": 1.5, "rank": 3,
        "architecture_id": STUDENT.id,
    }  # fmt: skip
    (trial / "parameter.cfg").write_text(json.dumps({"parameter_id": 7, "parameters": parameters}))
    nni = {
        "NNI_PLATFORM": "local", "NNI_EXP_ID": "exp", "NNI_TRIAL_JOB_ID": "Ab1", "NNI_TRIAL_SEQ_ID": "0",
        "NNI_SYS_DIR": str(trial), "NNI_OUTPUT_DIR": str(trial),
    }  # fmt: skip
    command = [sys.executable, "-m", "trial.distill", *RECIPE, "--teacher-dir", str(tmp_path / "teachers")]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **nni, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")

    reports = [json.loads(line) for line in _metrics(trial)]
    values = [json.loads(report["value"]) for report in reports]
    assert [report["type"] for report in reports] == ["PERIODICAL"] * 3 + ["FINAL"]
    assert [report["sequence"] for report in reports[:3]] == [0, 1, 2]
    assert {report["parameter_id"] for report in reports} == {7}
    result = json.loads((trial / "result.json").read_text())
    assert values[-1]["default"] == values[-2]["default"] == result["accuracy"]
    assert values[-1]["architecture_id"] == result["architecture_id"] == STUDENT.id
    assert (values[-1]["params"], values[-1]["macs"]) == (STUDENT.params, STUDENT.macs)
    assert result["teacher_accuracy"] == values[-1]["teacher_accuracy"]
    assert result["score"] == 1.5
    assert result["accuracy"] <= result["top5"] == values[-1]["top5"] == values[-2]["val_top5"]
    assert Architecture.load(trial / "architecture.json").id == STUDENT.id
    built = STUDENT.build()
    built.load_state_dict(read(trial / "weights.pt"))

    # What the web page's TensorBoard button opens:
    board = EventAccumulator(str(tmp_path / "exp" / "trials" / "Ab1" / "output" / "tensorboard"))
    board.Reload()
    expected = {"learning_rate", "train/cross_entropy", "train/accuracy", "val/accuracy", "val/teacher_accuracy"}
    assert expected | {f"train/attention/stage{n}" for n in (1, 2, 3)} <= set(board.Tags()["scalars"])
    assert len(board.Scalars("val/accuracy")) == 3
    (text,) = board.Tensors("architecture/text_summary")
    assert f"{STUDENT.params:,} parameters, {STUDENT.macs:,} MACs" in text.tensor_proto.string_val[0].decode()
    pictures = board.Images("attention: image, then teacher | student")
    assert len(pictures) == 3
    assert (pictures[0].width, pictures[0].height) == (
        2 + 7 * 10,
        2 + 4 * 10,
    )  # 7 columns, 4 images of 8x8, borders of 2


def _metrics(trial: Path) -> list[str]:
    """The reports in NNI's file: each "ME", six digits of length, JSON."""
    text, found = (trial / ".nni" / "metrics").read_text(), []
    while text:
        length = int(text[2:8])
        found.append(text[8 : 8 + length])
        text = text[8 + length :]
    return found


def test_arguments_of_the_space_are_spelled_in_several_ways() -> None:
    spelled = [f"{name}={value}" for name, value in SMALL.items()]
    repeated = [word for one in spelled for word in ("--space-arg", one)]
    for arguments in (repeated, ["--space-arg", *spelled], ["--space-args", *spelled]):  # the last: in older configs
        given = distill.parser().parse_args(["--space", WRN, *arguments])
        assert options.space_args(given) == SMALL


@pytest.mark.slow  # starts two processes: half a minute
def test_two_processes_share_each_batch(trained: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trial.distill", *trained, "--devices", "2", "--out", str(tmp_path / "out")]
    command += ["--epochs", "1", "--limit-steps", "99"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("epoch 1/1") == 1
    assert read(tmp_path / "out" / "last.ckpt")["global_step"] == 1437 // 128  # as with one process


@pytest.mark.slow  # starts two processes: half a minute
def test_two_processes_share_each_batch_of_ones_own_data_too(tmp_path: Path) -> None:
    STUDENT.save(tmp_path / "student.json")
    command = [sys.executable, "-m", "trial.distill", "--architecture", str(tmp_path / "student.json"), "--beta", "0"]
    command += ["--data", "tests.trial.starting:own_digits", "--batch-size", "128", "--devices", "2", "--epochs", "1"]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert read(tmp_path / "out" / "last.ckpt")["global_step"] == 256 // 128  # as with one process


@pytest.mark.parametrize(("more", "epochs"), [([], 1), (["--teacher-epochs", "2"], 2)])
def test_a_teacher_is_trained_as_long_as_told(
    more: list[str], epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    STUDENT.save(tmp_path / "student.json")
    arguments = ["--architecture", str(tmp_path / "student.json"), "--out", str(tmp_path / "out"), *ALONE]
    folder = tmp_path / "teachers"
    arguments += ["--epochs", "1", "--limit-steps", "1", "--teacher-dir", str(folder)]
    run_here(monkeypatch, [*arguments, *more])
    (trained,) = folder.glob("*/last.ckpt")
    assert read(trained)["global_step"] == epochs
    assert json.loads((tmp_path / "out" / "result.json").read_text())["epochs"] == 1


def test_a_clipped_step_is_as_long_as_rate_times_clip(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = "--beta 0 --momentum 0 --weight-decay 0 --lr 0.1 --epochs 1 --limit-steps 1"
    run_here(monkeypatch, [*trained, "--out", str(tmp_path / "out"), *plain.split(), "--clip", "0.1"])
    with seeded(0):  # as --seed says
        before = STUDENT.build()
    after = read(tmp_path / "out" / "weights.pt")
    moved = [(after[name] - weight).detach().flatten() for name, weight in before.named_parameters()]
    assert torch.cat(moved).norm().item() == pytest.approx(0.1 * 0.1, rel=1e-3)


def first_step(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> SimpleNamespace:
    """What the first training step of a run starts with; the run goes no further."""
    seen = SimpleNamespace()

    def stop(module: ImageTraining, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        seen.weights = module.network.conv.weight.detach().clone()
        seen.images, seen.labels = batch
        seen.rate = module.trainer.optimizers[0].param_groups[0]["lr"]
        raise TrainingError("seen enough")

    with monkeypatch.context() as patched:
        patched.setattr(ImageTraining, "training_step", stop)
        with pytest.raises(SystemExit, match="seen enough"):
            run_here(patched, arguments)
    return seen


def test_the_seed_decides_over_weights_order_and_augmentation(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [*trained, "--beta", "0"]
    first, again, other = (
        first_step(monkeypatch, [*alone, "--out", str(tmp_path / str(number)), "--seed", seed])
        for number, seed in enumerate("001")
    )
    for name in ("weights", "labels", "images"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize(("method", "rate"), [("l1-pruning", 0.02), ("snip", 0.2), ("reduced", 0.2)])
def test_a_pruned_teacher_is_tuned_at_a_tenth_of_the_rate(
    method: str, rate: float, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    STUDENT.teacher().save(tmp_path / "student.json")
    compared = ["--method", method, "--nonzero", "20000", "--lr", "0.2", "--beta", "0"]
    assert first_step(monkeypatch, [*trained, "--out", str(tmp_path / "out"), *compared]).rate == pytest.approx(rate)


def test_without_attention_transfer_there_is_no_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    STUDENT.save(tmp_path / "student.json")
    arguments = ["--architecture", str(tmp_path / "student.json"), "--out", str(tmp_path / "out"), *ALONE]
    run_here(monkeypatch, [*arguments, "--beta", "0", "--epochs", "1", "--teacher-dir", str(tmp_path / "teachers")])
    assert "teacher_accuracy" not in json.loads((tmp_path / "out" / "result.json").read_text())
    assert not (tmp_path / "teachers").exists()


def shown_in(out: Path) -> set[str]:
    """Names of the curves of a run."""
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    return set(board.Tags()["scalars"])


def test_answers_and_features_can_be_imitated_beside_attention_or_instead(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["--epochs", "1", "--limit-steps", "1"]
    for name, imitated in (
        ("all", "--beta 10 --kd 0.5 --temperature 3 --features 0.1"),
        ("answers", "--beta 0 --kd 0.5"),
        ("named", "--beta 0 --features 0.1 --attention-points stage1 stage2"),
    ):
        run_here(monkeypatch, [*trained, *short, "--out", str(tmp_path / name), *imitated.split()])
    attention, features = ({f"train/{kind}/stage{n}" for n in (1, 2, 3)} for kind in ("attention", "features"))
    assert attention | features | {"train/logits"} <= shown_in(tmp_path / "all")
    answers = shown_in(tmp_path / "answers")
    assert "train/logits" in answers
    assert not answers & (attention | features)
    assert shown_in(tmp_path / "named") & features == features - {"train/features/stage3"}


def test_a_student_starts_from_its_teacher_where_told(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = torch.load(tmp_path / "teacher.pt", weights_only=True)
    from_teacher = first_step(monkeypatch, [*trained, "--out", str(tmp_path / "t"), "--init", "teacher", "--beta", "0"])
    assert torch.equal(from_teacher.weights, given["conv.weight"])
    fresh = first_step(monkeypatch, [*trained, "--out", str(tmp_path / "f"), "--beta", "0"])
    with seeded(0):
        assert torch.equal(fresh.weights, STUDENT.build().conv.weight)
    with pytest.raises(SystemExit, match="a student starts from fresh or teacher or library, not 'nobody'"):
        run_here(monkeypatch, [*trained, "--out", str(tmp_path / "n"), "--init", "nobody"])


def test_the_average_is_what_is_published(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = "--epochs 1 --beta 0 --ema 0.9 --optimizer adamw --lr 0.01 --warmup 0.5 --label-smoothing 0.1"
    more = [*short.split(), "--accumulate", "2"]
    run_here(monkeypatch, [*trained, "--out", str(tmp_path / "out"), *more])
    kept = read(tmp_path / "out" / "last.ckpt")["state_dict"]
    for name, value in read(tmp_path / "out" / "weights.pt").items():
        assert torch.equal(value, kept[f"average.module.{name}"])
    STUDENT.build().load_state_dict(read(tmp_path / "out" / "weights.pt"))
    STUDENT.teacher().save(tmp_path / "student.json")
    pruned = ["--method", "snip", "--nonzero", "20000"]
    with pytest.raises(SystemExit, match="--ema needs weights of their own"):
        run_here(monkeypatch, [*trained, "--out", str(tmp_path / "pruned"), *more, *pruned])


def test_in_a_terminal_each_epochs_accuracy_stays_above_the_bar(trained: list[str], tmp_path: Path) -> None:
    """A pseudo-terminal takes what a person would see."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 150, 0, 0))  # in nothing a bar is nothing
    arguments = [*trained, "--out", str(tmp_path / "out"), "--beta", "0", "--epochs", "2", "--limit-steps", "2"]
    command = [sys.executable, "-m", "trial.distill", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end was closed
            while piece := os.read(ours, 4096):
                shown += piece
        process.wait()
    os.close(ours)
    text = shown.decode()
    accuracy = read_json(tmp_path / "out" / "result.json")["accuracy"]
    assert re.search(r"epoch 1/2: .*val/accuracy \d", text), text
    assert f"val/accuracy {accuracy:.4g}" in text
    assert "it/s" in text, repr(text)  # and there was a bar


def made() -> nn.Module:
    """A network of somebody's own that comes with its weights."""
    network = nn.Sequential(OrderedDict(
        conv=nn.Conv2d(1, 8, 3, padding=1), bn=nn.BatchNorm2d(8), relu=nn.ReLU(), wide=nn.Conv2d(8, 8, 3, padding=1),
        bn2=nn.BatchNorm2d(8), relu2=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(8, 10),
    ))  # fmt: skip
    for weight in network.parameters():
        nn.init.constant_(weight, 0.25)
    return network


def test_a_network_that_comes_with_its_weights_teaches_with_them_and_its_student_starts_afresh_or_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"model": f"{__name__}:made", "input_size": [1, 8, 8]}
    Architecture.from_choices("nni_blockswap.blocks.network:NetworkSpace", ["G(2)"], own).save(tmp_path / "a.json")
    arguments = ["--architecture", str(tmp_path / "a.json"), *ALONE, "--teacher", "original", "--beta", "10"]
    afresh, again, from_it = (
        first_step(monkeypatch, [*arguments, "--out", str(tmp_path / out), "--init", start])
        for out, start in (("a", "fresh"), ("b", "fresh"), ("c", "teacher"))
    )
    assert torch.equal(afresh.weights, again.weights)
    assert not bool((afresh.weights == 0.25).any())
    assert bool((from_it.weights == 0.25).all())
    assert "the student starts from fresh weights" in capsys.readouterr().out
    assert not (tmp_path / "teachers").exists()


def numbers(root: str | None) -> LossTask:
    """Ten numbers an image, which are no classes."""
    images = torch.linspace(-1, 1, 32).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    data = torch.utils.data.TensorDataset(images, images.mean((2, 3)).expand(-1, 10))
    return LossTask(data, torch.nn.functional.mse_loss, data)


def test_numbers_are_learned_from_a_teacher_and_judged_by_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"model": f"{__name__}:made", "input_size": [1, 8, 8]}
    Architecture.from_choices("nni_blockswap.blocks.network:NetworkSpace", ["G(2)"], own).save(tmp_path / "a.json")
    arguments = ["--data", f"{__name__}:numbers", "--epochs", "1", "--batch-size", "16", "--beta", "1", "--lr", "0.01"]
    student = ["--architecture", str(tmp_path / "a.json"), "--teacher", "original", "--out", str(tmp_path / "out")]
    run_here(monkeypatch, [*student, *arguments])
    result = read_result(tmp_path / "out" / "result.json")
    assert result["metric"] == BY_LOSS.recorded()
    assert result["loss"] > 0
    assert "accuracy" not in result
    assert "parameters, validation loss" in capsys.readouterr().out

"""A run that was cut off, made longer or spoilt: what its folder lets a later one do."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nni_blockswap.files import read_json
from nni_blockswap.training.checkpoints import read
from tests.trial.starting import ALONE, ROOT, STUDENT, files_in, run_apart, run_here

WHEN_SECOND_EPOCH_IS_HALF = """
from nni_blockswap.training.classification import ImageTraining
step = ImageTraining.training_step
def failing(self, batch, batch_idx):
    if self.current_epoch == 1 and batch_idx == 2:
        {fault}
    return step(self, batch, batch_idx)
ImageTraining.training_step = failing
program.main("trial", distill.run)
"""


def test_killed_in_mid_epoch_it_goes_on_and_ends_where_it_would_have(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    kill = WHEN_SECOND_EPOCH_IS_HALF.format(fault="os.kill(os.getpid(), signal.SIGKILL)")
    assert run_apart(kill, [*trained, "--out", str(cut)]).returncode == -signal.SIGKILL
    assert not (cut / "result.json").exists()
    run_here(monkeypatch, [*trained, "--out", str(cut)])
    said = capsys.readouterr().out
    assert "going on after epoch 1" in said
    assert [f"epoch {n}/3" in said for n in (1, 2, 3)] == [False, True, True]

    run_here(monkeypatch, [*trained, "--out", str(whole)])
    results = [json.loads((out / "result.json").read_text()) for out in (cut, whole)]
    assert [result["epochs"] for result in results] == [3, 3]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    weights = [read(out / "weights.pt") for out in (cut, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])  # to the bit

    # A run that is complete is not run again, but ends as it did.
    run_here(monkeypatch, [*trained, "--out", str(cut)])
    assert "epoch 3/3" not in capsys.readouterr().out.partition("going on")[2]
    assert json.loads((cut / "result.json").read_text())["accuracy"] == results[0]["accuracy"]


def test_a_full_disk_ends_in_a_sentence_and_spoils_nothing(trained: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"  # no file may grow beyond this any more
    ended = run_apart(WHEN_SECOND_EPOCH_IS_HALF.format(fault=fill), [*trained, "--out", str(out)])
    assert ended.returncode == 2
    (sentence,) = ended.stderr.strip().splitlines()
    assert "File too large" in sentence
    assert "what was written before is kept" in sentence
    assert read(out / "last.ckpt")["epoch"] == 0
    assert read(out / "best.ckpt")["epoch"] == 0
    assert not list(out.glob(".*"))  # no half-written file is left


def test_two_runs_do_not_mix_in_one_folder(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*trained, "--out", str(tmp_path / "out"), "--epochs", "1", "--limit-steps", "1"]
    run_here(monkeypatch, arguments)
    with pytest.raises(SystemExit, match=r"out' holds a run with another lr, beta; give this one a folder of its own"):
        run_here(monkeypatch, [*arguments, "--lr", "0.2", "--beta", "3"])
    more = ["--limit-steps", "2", "--teacher-epochs", "9", "--data-root", str(tmp_path), "--method", "reduced"]
    with pytest.raises(SystemExit, match=r"with another data_root, limit_steps, teacher_epochs, method, variant;"):
        run_here(monkeypatch, [*arguments, *more])
    for damaged in ("{", "[3]", "\N{SNOWMAN}"):
        (tmp_path / "out" / "settings.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(
            SystemExit, match=r"^trial: '.*settings\.json' is damaged .*; give this one a folder of its own"
        ):
            run_here(monkeypatch, arguments)


def test_a_run_that_came_to_nothing_leaves_its_folder_free(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*trained, "--out", str(tmp_path / "out"), "--epochs", "1", "--limit-steps", "1"]
    with pytest.raises(SystemExit, match=r"there is no checkpoint 'mistyped\.pt'"):
        run_here(monkeypatch, [*arguments, "--teacher", "mistyped.pt", "--lr", "0.2"])
    run_here(monkeypatch, arguments)
    assert read_json(tmp_path / "out" / "settings.json")["lr"] == 0.1


def test_a_run_without_a_checkpoint_yet_keeps_its_folder(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = (
        "distillation_trial.find_teacher = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "program.main('trial', distill.run)"
    )
    done = run_apart(killed, [*trained, "--out", str(tmp_path / "out")])
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(SystemExit, match="out' holds a run with another lr;"):
        run_here(monkeypatch, [*trained, "--out", str(tmp_path / "out"), "--lr", "0.2"])
    assert read_json(tmp_path / "out" / "settings.json")["lr"] == 0.1


def test_the_folder_that_one_is_in_will_do(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    run_here(monkeypatch, [*trained, "--out", ".", "--epochs", "1", "--limit-steps", "1", "--beta", "0"])
    assert (tmp_path / "out" / "weights.pt").exists()


def test_a_finished_run_is_made_longer_by_more_epochs_with_the_teacher_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    STUDENT.save(tmp_path / "student.json")
    arguments = ["--architecture", str(tmp_path / "student.json"), "--out", str(tmp_path / "out"), *ALONE]
    arguments += ["--limit-steps", "1", "--teacher-dir", str(tmp_path / "teachers")]
    run_here(monkeypatch, [*arguments, "--epochs", "1"])
    capsys.readouterr()
    run_here(monkeypatch, [*arguments, "--epochs", "3"])
    said = capsys.readouterr().out
    assert "the run of 1 epochs" in said
    assert "becomes one of 3, and goes on under the schedule of 3 epochs; to have that from the first epoch on" in said
    assert [f"epoch {n}/3" in said for n in (1, 2, 3)] == [False, True, True]
    assert "training the teacher" not in said
    assert len(list((tmp_path / "teachers").glob("*.pt"))) == 1
    result = read_json(tmp_path / "out" / "result.json")
    assert result["epochs"] == 3
    run_here(monkeypatch, [*arguments, "--epochs", "3"])  # complete
    assert "epoch 3/3" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds a run of 3 epochs, which can be made longer and not shorter"):
        run_here(monkeypatch, [*arguments, "--epochs", "2"])


def test_a_best_epoch_that_a_full_disk_left_is_not_another_runs(trained: list[str], tmp_path: Path) -> None:
    """The best epoch is written first; the disk is full for the last one."""
    out = tmp_path / "out"
    full = (
        "from nni_blockswap.training import checkpoints\n"
        "save = checkpoints.save\n"
        "def failing(content, path):\n"
        "    if path.endswith('last.ckpt'): raise OSError(28, 'No space left on device')\n"
        "    save(content, path)\n"
        "checkpoints.save = failing\n"
        "program.main('trial', distill.run)"
    )
    ended = run_apart(full, [*trained, "--out", str(out)])
    assert ended.returncode == 2
    assert "No space left on device; what was written before is kept" in ended.stderr
    assert files_in(out) & {"best.ckpt", "last.ckpt", "settings.json"} == {"best.ckpt", "settings.json"}
    plain = "program.main('trial', distill.run)"
    other = run_apart(plain, [*trained, "--out", str(out), "--lr", "0.01"])
    assert "holds a run with another lr; give this one a folder of its own" in other.stderr
    (out / "settings.json").unlink()  # by hand, say
    other = run_apart(plain, [*trained, "--out", str(out), "--lr", "0.01"])
    assert "best.ckpt' is another run's; give this one a folder of its own, or delete that file" in other.stderr


UNTIL_SECOND_EPOCH = """
import torch; torch.set_num_threads(1)
from trial import distill; from nni_blockswap.training import program
from nni_blockswap.training.classification import ImageTraining
step = ImageTraining.training_step
def slow(self, batch, batch_idx):
    if self.current_epoch == 1:
        print("now", flush=True); import time; time.sleep(60)
    return step(self, batch, batch_idx)
ImageTraining.training_step = slow
program.main("trial.distill", distill.run)
"""


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_run_that_is_stopped_says_so_and_goes_on_later(
    number: signal.Signals, said: str, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", UNTIL_SECOND_EPOCH, *trained, "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "now\n" for line in process.stdout)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    kept = "what was written before is kept: the same command goes on after the last whole epoch."
    assert errors == f"trial.distill: stopped by {said}; {kept}\n"
    assert not files_in(tmp_path / "out") & {"result.json", "weights.pt"}
    assert read(tmp_path / "out" / "last.ckpt")["epoch"] == 0
    run_here(monkeypatch, [*trained, "--out", str(tmp_path / "out")])
    assert read_json(tmp_path / "out" / "result.json")["epochs"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"state_dict": {}},
        {"state_dict": {"network.conv.weight": torch.zeros(1)}},
        {"optimizer_states": []},
        {"optimizer_states": "none"},
        {"loops": {"fit_loop": 3}},
        {"loops": None},
        {"callbacks": 5},
        {"global_step": "many"},
        {"pytorch-lightning_version": 2},
    ],
)
def test_a_checkpoint_changed_by_hand_ends_in_a_sentence_or_does_no_harm(
    change: dict[str, object], trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*trained, "--out", str(tmp_path / "out"), "--limit-steps", "1", "--beta", "0"]
    run_here(monkeypatch, [*arguments, "--epochs", "1"])
    content = read(tmp_path / "out" / "last.ckpt")
    torch.save({**content, **change}, tmp_path / "out" / "last.ckpt")
    try:
        run_here(monkeypatch, [*arguments, "--epochs", "2"])
    except SystemExit as ended:
        sentence, code = str(ended), ended.code
        assert code == 2
        assert "training cannot go on from" in sentence, sentence
        assert "\n" not in sentence
    else:
        assert read_json(tmp_path / "out" / "result.json")["epochs"] == 2


def test_a_damaged_last_epoch_gives_way_to_the_best_one_with_a_word(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*trained, "--out", str(tmp_path / "out"), "--limit-steps", "1", "--beta", "0"]
    run_here(monkeypatch, [*arguments, "--epochs", "1"])
    damaged = bytearray((tmp_path / "out" / "last.ckpt").read_bytes())
    damaged[len(damaged) // 2] ^= 16  # among the weights
    (tmp_path / "out" / "last.ckpt").write_bytes(damaged)
    capsys.readouterr()
    run_here(monkeypatch, [*arguments, "--epochs", "2"])
    said = capsys.readouterr().out
    assert "last.ckpt' cannot be read, it may be damaged" in said
    assert "going on after epoch 1, from" in said
    assert "best.ckpt'" in said

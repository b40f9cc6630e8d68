"""A run's folder: one process at a time, given up by those that left nothing, known by its settings."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nni_blockswap.errors import StateError
from nni_blockswap.files import read_json, write_json
from nni_blockswap.training import checkpoints, folder
from nni_blockswap.training.folder import Run, occupied, settings_in, take_over

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {"lr": 0.1, "epochs": 4}


def enter(out: Path, **changed: Any) -> Run:
    with occupied(out, {**SETTINGS, **changed}, {"ema": None}) as run:
        (out / "last.ckpt").touch()
    return run


def test_a_run_keeps_its_name_and_its_first_number_of_epochs(tmp_path: Path) -> None:
    first = enter(tmp_path)
    assert enter(tmp_path) == first
    longer = enter(tmp_path, epochs=6)
    assert (longer.name, longer.began_with) == (first.name, 4)
    assert enter(tmp_path, epochs=9).began_with == 4
    assert settings_in(tmp_path)["extended_from"] == [4, 6]
    assert enter(tmp_path / "another").name != first.name


def test_a_trial_goes_on_where_one_of_the_same_student_was_killed(tmp_path: Path) -> None:
    killed, new = {}, tmp_path / "new"
    for name, student in {"mine": "a", "rotten": "a", "other": "b"}.items():
        killed[name] = enter(tmp_path / name).name
        write_json(tmp_path / name / "parameters.json", {"architecture_id": student})
        checkpoints.save({"of": name}, tmp_path / name / "last.ckpt")
    (tmp_path / "rotten" / "last.ckpt").write_bytes(b"rot")  # the latest
    take_over(new, {"architecture_id": "a"}, SETTINGS, {})
    assert (enter(new).name, checkpoints.read(tmp_path / "mine" / "last.ckpt")) == (killed["mine"], {"of": "mine"})
    take_over(new, {"architecture_id": "b"}, SETTINGS, {})
    assert settings_in(new)["run"] == killed["mine"]  # a run that has begun is left alone
    take_over(tmp_path / "third", {"architecture_id": "c"}, SETTINGS, {})
    assert not (tmp_path / "third").exists()


def test_a_trial_begins_anew_where_the_killed_one_was_another_run(tmp_path: Path) -> None:
    """As where its library has learned more since; a setting that is new is as usual in older folders."""
    enter(tmp_path / "killed")
    write_json(tmp_path / "killed" / "parameters.json", {"architecture_id": "a"})
    checkpoints.save({}, tmp_path / "killed" / "last.ckpt")
    for new, changed in {"other": {"init": "library=2"}, "averaged": {"ema": 0.9}, "same": {"epochs": 9}}.items():
        take_over(tmp_path / new, {"architecture_id": "a"}, {**SETTINGS, **changed}, {"ema": None})
        assert (tmp_path / new / "last.ckpt").exists() == (new == "same")


def test_a_setting_that_is_new_is_as_usual_in_older_folders(tmp_path: Path) -> None:
    enter(tmp_path)
    assert enter(tmp_path, ema=None)
    with pytest.raises(StateError, match="holds a run with another ema;"):
        enter(tmp_path, ema=0.9)


def test_a_folder_of_an_older_version_gets_a_name(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    assert enter(tmp_path).name == read_json(tmp_path / "settings.json")["run"]


def test_a_run_that_left_nothing_leaves_the_folder_free_and_one_that_left_a_best_epoch_does_not(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), occupied(tmp_path, SETTINGS, {}):
        raise OSError("full")
    assert not (tmp_path / "settings.json").exists()
    (tmp_path / "best.ckpt").touch()  # as where the disk was full for the last one
    with pytest.raises(OSError, match="full"), occupied(tmp_path, SETTINGS, {}):
        raise OSError("full")
    with pytest.raises(StateError, match="holds a run with another lr"):
        enter(tmp_path, lr=0.2)


@pytest.mark.parametrize(
    "text",
    ["null", "3", "[]", '[["lr", 1]]', '{"epochs": "four"}', '{"epochs": true}', '{"run": 3}', '{"extended_from": 3}',
     '{"extended_from": ["x"]}', "{", "\N{SNOWMAN}", "[" * 100_000],
)  # fmt: skip
def test_settings_that_are_none_are_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text, encoding="utf-8")
    with pytest.raises(StateError, match=r"settings\.json' is damaged .*; give this one a folder of its own"):
        enter(tmp_path)


HOLDER = """
import sys, time
from pathlib import Path
from nni_blockswap.training.folder import occupied
with occupied(Path(sys.argv[1]), {"lr": 0.1, "epochs": 4}, {}):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder_of(out: Path) -> "Iterator[subprocess.Popen[str]]":
    """A process that holds ``out``."""
    held = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == "held\n"
        yield held
    finally:
        held.kill()
        held.wait()


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder, "PATIENCE", 0.2)
    with holder_of(tmp_path) as holder:
        with pytest.raises(StateError, match=r"another process is training in .*; wait until it has ended, or give"):
            enter(tmp_path)
        assert "waiting for it" in capsys.readouterr().out
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert enter(tmp_path)


def test_under_nni_a_second_process_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "PATIENCE", 0.0)
    monkeypatch.setenv("NNI_PLATFORM", "local")
    with holder_of(tmp_path) as holder:
        killer = os.fork()
        if killer == 0:
            time.sleep(1)
            os.kill(holder.pid, signal.SIGKILL)
            os._exit(0)
        assert enter(tmp_path)
        os.waitpid(killer, 0)

"""Commands that start experiments, their command lines, configs and plans wrong somewhere: none gets to the start."""

import contextlib
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from nni_blockswap.architecture import Architecture
from nni_blockswap.cli import parser, run
from nni_blockswap.errors import ConfigError
from nni_blockswap.experiment import unmanaged
from nni_blockswap.experiment.config import Config
from nni_blockswap.files import write_json
from nni_blockswap.training import options
from tests.fuzz.harness import Ended, examine, run_blockswap
from tests.fuzz.mutations import miswritten, mutated
from tests.fuzz.valid import ARGUMENTS, BOTH, COMPARED, PLAN, config
from tests.studies.test_report import trial
from trial import distill

NOT_HERE = "no experiment is started here"


class Nnictl:
    """Takes ``nnictl`` at its word, and does not start anything."""

    def __init__(self) -> None:
        self.called: list[tuple[str, ...]] = []

    def __call__(self, *arguments: str) -> Any:
        self.called.append(arguments)
        return SimpleNamespace(communicate=lambda: (f"{NOT_HERE}\n", None), returncode=1)


def runs(words: list[str]) -> tuple[Ended, list[tuple[str, ...]]]:
    """How ``blockswap`` with these words ended, and what it had told ``nnictl``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "nnictl", nnictl := Nnictl())
        return run_blockswap(*words), nnictl.called


def test_runs(count, workshop):
    """What gets as far as ``nnictl`` is a config, and a port that there is."""

    def start(case: tuple[list[str], dict[str, Any]]) -> None:
        words, content = case
        shutil.copy(workshop / "space.json", "space.json")
        Path("config.yml").write_text(yaml.safe_dump(content))
        ended, called = runs(words)
        if "--help" not in words and "-h" not in words:
            assert not ended.is_valid
        assert called or NOT_HERE not in ended.err
        for command in called:
            assert command[:2] == ("create", "--config")
            assert command[3] == "--port"
            assert 1 <= int(command[4]) <= 65535
            assert Config(Path(command[2])).arguments

    words = st.one_of(st.just(["run", "config.yml"]), miswritten(["run", "config.yml", "--port", "8080"]))
    contents = st.sampled_from([ARGUMENTS, ARGUMENTS, COMPARED]).map(config)
    examine(st.tuples(words, st.one_of(contents, contents.flatmap(mutated))), start, count)


def trained(words: list[str], *, cwd: Path, stdout: Any, **_: Any) -> SimpleNamespace:
    """The process of a trial that takes no time: what it is told has to be right, what it finds is made up."""
    if words[0] != sys.executable or not cwd.is_dir():
        raise FileNotFoundError(2, "No such file or directory", words[0])

    def say(text: str) -> SimpleNamespace:
        stdout.write(f"{text}\n".encode())
        return SimpleNamespace(wait=lambda timeout: 2)

    if words[1:3] != ["-m", "trial.distill"]:
        return say(f"No module named {words[2:3]}")
    with contextlib.redirect_stderr(sys.stdout):
        try:
            given = distill.parser().parse_args(words[3:])
            distill.check(given)
        except SystemExit:
            return say("trial.distill: error: its command is wrong.")
        except ConfigError as error:
            return say(str(error))
    one = Architecture.load(given.architecture, allow=())
    error = zlib.crc32(one.id.encode()) % 50 / 100
    named = {"method": given.method, "variant": given.variant} if given.method else {}
    trial(Path(given.out), list(one.choices.values()), 1 - error, space_args=one.space_args, seed=given.seed, **named)
    write_json(Path(given.out) / "settings.json", {"seed": given.seed, **options.data_settings(given)})
    return SimpleNamespace(wait=lambda timeout: 0)


def reproduces(words: list[str]) -> Ended:
    """How ``blockswap reproduce`` with these words ended, on a machine whose trials take no time."""
    with pytest.MonkeyPatch.context() as patch:
        known = {"STDOUT": subprocess.STDOUT, "TimeoutExpired": subprocess.TimeoutExpired}
        patch.setattr(unmanaged, "subprocess", SimpleNamespace(Popen=trained, **known))
        return run_blockswap(*words)


REPRODUCE = ["reproduce", "plan.yml", "--scale", "tiny", "--out", "new"]


def test_reproductions(count, workshop):
    def reproduce(case: tuple[list[str], Any, Any]) -> None:
        words, plan, compared = case
        Path("plan.yml").write_text(yaml.safe_dump(plan))
        Path("compared.yml").write_text(yaml.safe_dump(compared))
        ended = reproduces(words)
        if ended.code == 1:  # trials that failed, sections that cannot be made: each in a sentence
            assert "Traceback" not in ended.err
            assert all(": " in line or " candidates, " in line for line in ended.err.splitlines()), ended.err
        elif ended.is_valid:
            assert Path(parser().parse_args(words).out, "index.html").exists()

    valid = st.just(REPRODUCE), st.just(PLAN), st.just(config(BOTH))
    examine(
        st.one_of(
            st.tuples(miswritten(REPRODUCE), *valid[1:]),
            st.tuples(valid[0], mutated(PLAN), valid[2]),
            st.tuples(valid[0], mutated(PLAN["scales"]["tiny"]).map(scaled), valid[2]),
            st.tuples(*valid[:2], mutated(config(BOTH))),
        ),
        reproduce,
        count,
    )


def scaled(scale: Any) -> dict[str, Any]:
    """The plan with another scale."""
    return {**PLAN, "scales": {"tiny": scale}}


def test_what_is_right_gets_to_the_start(workshop, tmp_path, monkeypatch):
    shutil.copytree(workshop, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    ended, called = runs(["run", "config.yml", "--port", "8080"])
    assert (ended.code, len(called)) == (2, run.ATTEMPTS)
    assert NOT_HERE in ended.err
    ended = reproduces(REPRODUCE)
    assert ended.code == 0, ended.err
    text = Path("new", "index.html").read_text()
    assert text.count("<h2>") == len(PLAN["sections"])
    assert 'class="note"' not in text

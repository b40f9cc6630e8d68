"""Experiments without NNI: which trials run with what, what is not run again, and what a failure leaves."""

import json
import os
import shlex
import signal
from pathlib import Path

import pytest
import yaml

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.unmanaged import Changes, run_experiment

TRIAL = """
import json, os, pathlib, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = pathlib.Path(words["--out"])
runs = out / "runs.json"
runs.write_text(json.dumps([*(json.loads(runs.read_text()) if runs.exists() else []), {**words, "cwd": os.getcwd()}]))
print("first words")
if words["--method"] == words.get("--fails"):
    sys.exit("trial: it does not want to.")
(out / "result.json").write_text("{}")
"""

SLOW = """
import os, pathlib, sys, time
out = pathlib.Path(dict(zip(sys.argv[1::2], sys.argv[2::2]))["--out"])
(out / "begun").touch()
"""

OFFERED = ["S", "B(2)", "G(4)", "B(4)"]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Two random architectures, a pruned one and a single type, for a trial that only notes what it is told."""
    (tmp_path / "trial.py").write_text(TRIAL)
    arguments = {
        "space": "search_spaces.wide_resnet:WideResNetSpace",
        "space_args": {"depth": 10, "width": 1, "in_channels": 1, "image_size": 8},
        "data": "digits",
        "budget": "40K",
        "tolerance": 0.2,
        "comparison": {"methods": ["random", "snip"], "single": ["G(4)"], "seeds": 1, "random": 2},
        "students": 1,
    }
    content = {
        "tuner": {"className": "nni_blockswap.tuner.BlockSwapTuner", "classArgs": arguments},
        "searchSpace": {f"block_{block:02d}": {"_type": "choice", "_value": OFFERED} for block in range(3)},
        "trialCommand": f"python {shlex.quote(str(tmp_path / 'trial.py'))} --epochs 200 --out nowhere",
        "trialCodeDirectory": ".",
    }  # fmt: skip
    (tmp_path / "config.yml").write_text(yaml.safe_dump(content))
    return Config(tmp_path / "config.yml")


def runs(out: Path, number: int) -> list[dict]:
    return json.loads((out / "trials" / f"{number:03d}" / "runs.json").read_text())


@pytest.mark.parametrize("at_once", [1, 2])
def test_every_trial_of_the_comparison_runs_by_the_configs_command(config, tmp_path, at_once) -> None:
    out = tmp_path / "out"
    said: list[str] = []
    assert run_experiment(config, Changes({}, {}), out, at_once=at_once, say=said.append) == []
    told = [runs(out, number)[0] for number in range(4)]
    assert [(one["--method"], one["--variant"], one["--seed"]) for one in told] == [
        ("random", "40K", "0"), ("random", "40K", "0"), ("snip", "40K", "0"), ("single", "G(4)", "0"),
    ]  # fmt: skip
    assert [one.get("--nonzero") for one in told] == [None, None, "40000", None]
    assert {one["--epochs"] for one in told} == {"200"}
    assert {one["cwd"] for one in told} == {str(tmp_path)}
    given = [Architecture.load(one["--architecture"]) for one in told]
    assert given[0].id != given[1].id
    assert set(given[3].choices.values()) == {"G(4)"}
    assert set(given[0].choices.values()) <= set(OFFERED)
    assert sorted(said)[0] == "000 random 40K 0: done"


def test_what_is_done_is_not_done_again_and_what_failed_is(config, tmp_path) -> None:
    out = tmp_path / "out"
    (fault,) = run_experiment(config, Changes({}, {}, ["--fails", "snip"]), out)
    assert fault == f"{out / 'trials' / '002'}: trial: it does not want to."
    before = (out / "trials.json").read_bytes()
    assert run_experiment(config, Changes({}, {}), out) == []
    assert [len(runs(out, number)) for number in range(4)] == [1, 1, 2, 1]
    assert (out / "trials.json").read_bytes() == before
    assert "it does not want to" in (out / "trials" / "002" / "trial.log").read_text()


def test_a_scale_changes_space_comparison_and_command(config, tmp_path) -> None:
    out = tmp_path / "out"
    wider = {"space_args": {"depth": 10, "width": 2, "in_channels": 1, "image_size": 8}}
    changes = Changes(wider, {"methods": [], "single": ["B(2)"]}, ["--epochs", "3"])
    assert run_experiment(config, changes, out) == []
    (told,) = runs(out, 0)
    assert (told["--variant"], told["--epochs"]) == ("B(2)", "3")
    assert Architecture.load(told["--architecture"]).space_args["width"] == 2
    assert not (out / "trials" / "001").exists()


def test_an_interruption_ends_the_trials_that_run_and_starts_no_other(config, tmp_path) -> None:
    out = tmp_path / "out"
    (tmp_path / "trial.py").write_text(SLOW)
    with (tmp_path / "trial.py").open("a") as trial:
        trial.write(f"os.kill({os.getpid()}, {signal.SIGINT.value})\ntime.sleep(5)\n(out / 'over').touch()\n")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, Changes({}, {}), out)
    assert [path.parent.name for path in out.glob("trials/*/begun")] == ["000"]
    assert not list(out.glob("trials/*/over"))


def test_a_relative_folder_is_one_of_whoever_calls(config, tmp_path, monkeypatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_experiment(config, Changes({}, {}, teachers=Path("taught")), Path("out")) == []
    (told,) = runs(tmp_path / "elsewhere" / "out", 0)
    assert told["--teacher-dir"] == str(tmp_path / "elsewhere" / "taught")
    assert told["cwd"] == str(tmp_path)


def test_trials_of_other_settings_are_not_taken_for_these(config, tmp_path) -> None:
    out = tmp_path / "out"
    assert run_experiment(config, Changes({}, {}), out) == []
    with pytest.raises(StateError, match="holds the trials of another comparison, another tolerance; set that back"):
        run_experiment(config, Changes({"tolerance": 0.3}, {"random": 1}), out)
    assert run_experiment(config, Changes({"processes": 1, "device": "cpu"}, {}), out) == []  # of the machine
    assert [len(runs(out, number)) for number in range(4)] == [1] * 4


@pytest.mark.parametrize("content", ["{", "null", "[1]"])
def test_a_list_of_trials_that_is_damaged_is_told(config, tmp_path, content) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trials.json").write_text(content)
    with pytest.raises(StateError, match=r"trials\.json' is damaged .*; delete it and start again"):
        run_experiment(config, Changes({}, {}), tmp_path / "out")


@pytest.mark.parametrize(
    ("command", "rule"), [(None, "is text, not None"), ("", "is empty"), ("python 'x", "is no command line")]
)
def test_a_command_that_is_none_is_told_before_anything_is_searched(config, tmp_path, command, rule) -> None:
    config.content["trialCommand"] = command
    with pytest.raises(ConfigError, match=rf"the trialCommand of .*config\.yml' {rule}"):
        run_experiment(config, Changes({}, {}), tmp_path / "out")
    assert not (tmp_path / "out").exists()

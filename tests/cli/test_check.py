"""blockswap check names every fault of an nnictl config at once; the shipped configs have none but absent data."""

import shlex
import sys
from pathlib import Path

import pytest
import yaml

from nni_blockswap.blocks.nni_format import to_nni
from nni_blockswap.cli import main
from nni_blockswap.cli.check import find_faults
from nni_blockswap.cli.trial_command import command_faults
from nni_blockswap.experiment.config import Config
from nni_blockswap.files import read_json
from nni_blockswap.spaces import cost_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def written(tmp_path):
    """A function: changes to config.yml, by dotted name, -> the path of the changed config; None removes a field."""

    def write(**changes):
        content = yaml.safe_load((ROOT / "config.yml").read_text())
        content |= {"searchSpaceFile": str(ROOT / "search_space.json"), "trialCodeDirectory": str(ROOT)}
        content["tuner"]["codeDirectory"] = str(ROOT)
        for name, value in changes.items():
            *above, last = name.split("__")
            place = content
            for step in above:
                place = place[step]
            place[last] = value
            if value is None:
                del place[last]
        path = tmp_path / "config.yml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_the_shipped_config_has_no_fault_and_lists_its_whole_space(capsys):
    assert main(["check", str(ROOT / "config.yml")]) == 0
    assert "no fault" in capsys.readouterr().out
    arguments = Config(ROOT / "config.yml").arguments
    assert read_json(ROOT / "search_space.json") == to_nni(cost_table(arguments["space"], arguments["space_args"]))


def test_nobody_sets_trial_gpu_number():
    for path in [ROOT / "config.yml", *(ROOT / "experiments").glob("*.yml")]:
        config = Config(path)
        assert "trialGpuNumber" not in {**config.content, **config.service}, path


def test_a_gpu_for_each_of_several_trials_as_the_experiments_say_it(written):
    """NNI divides what a trial asks for by what a GPU takes; it schedules less than all GPUs, and none of no GPU."""
    several = {"trialConcurrency": 2, "trialGpuNumber": 1}
    service = {"platform": "local", "maxTrialNumberPerGpu": 2, "useActiveGpu": True}
    found = find_faults(written(**several, trainingService=service))
    assert ["trialConcurrency is 2; above 1" in fault.sentence and not fault.fatal for fault in found] == [True]
    for lacking in ({"maxTrialNumberPerGpu": 1}, {"useActiveGpu": False}):
        found = find_faults(written(**several, trainingService={**service, **lacking}))
        assert ["NNI cannot schedule" in fault.sentence for fault in found if fault.fatal] == [True], lacking


@pytest.mark.parametrize(
    "path",
    # the machines of remote.yml are no more than examples: see tests/experiment/test_readiness.py
    [path for path in sorted((ROOT / "experiments").glob("*.yml")) if path.name != "remote.yml"],
    ids=lambda path: path.name,
)
def test_the_papers_experiments_lack_nothing_but_data(path, tmp_path):
    """Their data is not here, but for the digits; nothing else may be wrong."""
    config = Config(path)
    for field in {"searchSpaceFile", "trialCodeDirectory", "experimentWorkingDirectory"} & config.content.keys():
        config.content[field] = str(config.resolve(config.content[field]))
    config.tuner["codeDirectory"] = str(config.code_directory)
    nowhere = str(tmp_path / "nowhere")
    if is_elsewhere := config.arguments["data"] != "digits":
        config.arguments["data_root"] = nowhere
    words = shlex.split(config.content["trialCommand"])
    if "--data-root" in words:
        words[words.index("--data-root") + 1] = nowhere
    config.content["trialCommand"] = shlex.join(words)
    copy = tmp_path / "config.yml"
    copy.write_text(yaml.safe_dump(config.content))
    faults = [fault.sentence for fault in find_faults(copy) if fault.fatal]
    assert bool(faults) == is_elsewhere
    assert all(nowhere in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trialConcurency": 1}, "no field 'trialConcurency'; did you mean trialConcurrency?"),
        ({"tuner__classarg": {}}, "no field 'tuner.classarg'; did you mean classArgs?"),
        ({"trialCommand": None}, "'trialCommand' is missing"),
        (
            {"trialCommand": "python -m 'trial.distill"},
            "trialCommand cannot be split into words (No closing quotation)",
        ),
        ({"trialCommand": "python -m trial.distill --epochs -12"}, "--epochs must be above 0, not -12"),
        ({"trialCommand": "python -m trial.distill --lr nan"}, "--lr must be finite, which nan is not"),
        ({"trialCommand": "python -m trial.detect --warmup -1"}, "--warmup must not be negative, as -1 is"),
        (
            {"trialCommand": "python -m trial.distill --init best"},
            "a student starts from fresh or teacher or library, not 'best'",
        ),
        ({"trialCommand": "python -m trial.distill --workers -1"}, "--workers must not be negative, as -1 is"),
        ({"tuner__classArgs__samples": 0}, "samples must be above 0, not 0"),
        ({"tuner__classArgs__samples": 2}, "samples is 2, and 3 students are asked for; raise samples"),
        ({"tuner__classArgs__resources": ["latncy"]}, "'latncy' is no resource. Resources are params, macs, latency"),
        ({"tuner__classArgs__seed": -1}, "seed must be a whole number from 0 to 4294967295, not -1"),
        ({"tuner__classArgs__space_args__num_classes": 5}, "digits has 10 classes and the network 5"),
        ({"tuner__classArgs__space_args__num_classes": 1000}, "digits has 10 classes and the network 1000"),
        (
            {"trialCommand": "python -m trial.distill --data digits --data-option image_size=8"},
            "the search space is for images of 1x16x16 and digits has 1x8x8",
        ),
        ({"tuner__classArgs__data_options": {"image_size": "x"}}, "the data set 'digits' cannot take the options"),
        ({"trialConcurrency": 0}, "trialConcurrency must be above 0, not 0"),
        ({"maxTrialNumber": "three"}, "maxTrialNumber must be a whole number, not 'three'"),
        (
            {"maxTrialNumber": None},
            "maxTrialNumber is missing, and without it nothing is ever DONE; set it to 3",
        ),
        ({"maxTrialNumber": 5}, "maxTrialNumber is 5 and there are 3 students, so it is never DONE"),
        ({"trialGpuNumber": 1}, "trialGpuNumber is 1, which NNI cannot schedule"),
        ({"maxExperimentDuration": "soon"}, 'nnictl refuses the config: Bad unit in "soon"'),
        ({"tuner__className": "nni_blockswap.Tuner"}, "tuner.className is nni_blockswap.tuner.BlockSwapTuner"),
        ({"tuner__codeDirectory": None}, "tuner.codeDirectory is missing"),
        ({"tuner__codeDirectory": "/nowhere"}, "tuner.codeDirectory is a folder, and '/nowhere' is none"),
        ({"tuner__classArgs": None}, "tuner.classArgs is missing"),
        ({"tuner__classArgs__sample": 3}, "the tuner has no argument 'sample'"),
        ({"tuner__classArgs__budget": None}, "argument 'budget' is missing"),
        ({"tuner__classArgs__samples": 10**400}, "samples is a whole number, not 1000"),
        ({"tuner__classArgs__samples": "many"}, "samples is a whole number, not 'many'"),
        ({"tuner__classArgs__space": "nowhere:Space"}, "the space 'nowhere:Space' cannot be imported"),
        ({"tuner__classArgs__space_args": {"depth": 17}}, "6n + 4"),
        ({"tuner__classArgs__budget": "1K"}, "parameters reach from"),
        ({"tuner__classArgs__data": "mnist"}, "there is no data set 'mnist'"),
        ({"tuner__classArgs__data_options": {"size": 3}}, "has no option 'size'"),
        ({"tuner__classArgs__batch_size": 5000}, "5000"),
        ({"tuner__classArgs__proxy": "fischer"}, "fischer"),
        ({"tuner__classArgs__method": "adative"}, "there is no method 'adative'; choose from uniform, additive, evo"),
        (
            {"tuner__classArgs__method": "additive", "tuner__classArgs__proxy": "fisher+macs"},
            "'fisher+macs' compares candidates that are all known before",
        ),
        (
            {"tuner__classArgs__method": "halving", "tuner__classArgs__inits": 3, "tuner__classArgs__samples": 20},
            "halving ranks 2 of 20 samples, and 3 students are asked for; raise samples",
        ),
        ({"tuner__classArgs__device": "cuda:99"}, "cuda:99"),
        ({"tuner__classArgs__precision": "half"}, "there is no precision 'half'"),
        ({"searchSpaceFile": "nowhere.json"}, "nowhere.json"),
        ({"searchSpaceFile": None}, "neither searchSpaceFile nor searchSpace is there"),
        ({"searchSpaceFile": None, "searchSpace": {"block_77": {"_type": "choice", "_value": ["S"]}}}, "'block_77'"),
        ({"searchSpaceFile": None, "searchSpace": {"block_00": {"_type": "choice", "_value": ["Z(3)"]}}}, "Z(3)"),
        ({"trialCommand": "python -m trial.nothing"}, "the trial's module 'trial.nothing' is not in"),
        ({"trialCommand": "python -m trial.distill --data digits --epoch many"}, "invalid int value: 'many'"),
        ({"trialCommand": "python -m trial.distill --data digits --bets 3"}, "unrecognized arguments: --bets 3"),
        (
            {"trialCommand": "python -m trial.distill --data cifar100"},
            "searches on digits and the trial trains on cifar100",
        ),
        ({"tuner": {}}, "tuner.className is nni_blockswap.tuner.BlockSwapTuner, not None"),
        (
            {"trialCommand": "pyhton -m trial.distill"},
            "trialCommand begins with 'pyhton', and there is no such program",
        ),
        ({"trialCommand": ""}, "trialCommand is empty"),
        ({"trialCommand": "python -m trial.distill --help"}, "train nothing; remove --help"),
        ({"trialCommand": "python trial/nothing.py"}, "the trial's script 'trial/nothing.py' is not in"),
        ({"trialCommand": "A=1 python trial/distill.py --epochs -3 2>&1"}, "--epochs must be above 0, not -3"),
        (
            {"trialCommand": "cd . && python -m trial.distill --data digits --batch-size 640000"},
            "the training set has 1437 images, less than one batch",
        ),
        ({"trialCommand": "python -m trial.distill --data digits --data-option foo=3"}, "has no option 'foo'"),
        ({"trialCommand": "python -m trial.distill --data digits --recipe 3"}, "--recipe maps fields to values"),
        ({"trialCommand": "python -m trial.distill --teacher none.pt"}, "there is no checkpoint"),
        (
            {"trialCommand": "python -m trial.distill --teacher torchvision:ResNet18_Weights.nope"},
            "torchvision has no weights called 'ResNet18_Weights.nope'",
        ),
        ({"tuner__classArgs__minibatches": 100_000}, "minibatches is at most 1,000, not 100000"),
        ({"tuner__classArgs__seed": 2**63}, "seed must be a whole number from 0 to 4294967295"),
        ({"tuner__classArgs__data_options": {"root": "x"}}, "the data set 'digits' has no option 'root'"),
        ({"tuner__classArgs__data_options": {1: 0}}, "data_options is a mapping of names to values, not {1: 0}"),
        ({"tuner__classArgs__data_options": {"image_size": 0}}, "cannot take the options image_size=0"),
        ({"tuner__classArgs__space_args": {"num_classes": 0}}, "do not fit search_spaces.wide_resnet:WideResNetSpace"),
        ({"tuner__classArgs__space_args": {"in_channels": 0}}, "do not fit search_spaces.wide_resnet:WideResNetSpace"),
        ({"tuner__classArgs__space_args": {"depth": 6_000_004}}, "6n + 4 (10, 16, 22, 28, 40, ..., 1000)"),
        ({"tuner__classArgs__comparison": {5: 6, "a": 7}}, "comparison is a mapping of names to values"),
        ({"tuner__classArgs__device": "meta"}, "the device 'meta' cannot be used (nothing is computed there)"),
        ({"tuner__classArgs__data_root": "~nouser/x"}, "'~nouser/x' is no path on this machine"),
        ({"tuner__classArgs__tolerance": float("nan")}, "tolerance is a number or null, not nan"),
        (
            {"trainingService": {"platform": "remote", "machineList": [{"host": "h", "user": "u", "port": "22a"}]}},
            "port of the machine h is a whole number, not a str",
        ),
        ({"trialCodeDirectory": "/nowhere"}, "trialCodeDirectory is a folder, and '/nowhere' is none"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_every_fault_is_one_line_with_rule_value_and_remedy(written, changes, sentence):
    fatal = [fault.sentence for fault in find_faults(written(**changes)) if fault.fatal]
    assert any(sentence in fault for fault in fatal), fatal
    assert all("\n" not in fault for fault in fatal)


def test_a_home_in_the_trials_command_is_the_one_that_the_shell_puts_there(written, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = "python -m trial.distill --data digits --data-option image_size=8 --teacher ~/t.pt"
    path = written(trialCommand=command)
    assert f"there is no checkpoint '{tmp_path / 't.pt'}'." in [fault.sentence for fault in find_faults(path)]
    (tmp_path / "t.pt").touch()
    assert not any("there is no checkpoint" in fault.sentence for fault in find_faults(path))


GUARD = "if __name__ == '__main__':\n    parser()"


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        (f"def parser(words=None):\n    return options.parse_args(words)\n{GUARD}", ""),
        (f"def parser(lines):\n    return lines\n{GUARD}", ""),
        (f"import nowhere\ndef parser():\n    return options\n{GUARD}", ""),
        (f"def check(a, b):\n    return a\ndef parser():\n    return options\n{GUARD}", ""),
        ("def parser():\n    return options\nopen('imported', 'w')", ""),
        (f"def parser():\n    return options\n{GUARD}", "unrecognized arguments: --bets 1"),
    ],
)
def test_a_trial_of_ones_own_is_asked_for_its_options_alone(written, tmp_path, monkeypatch, program, fault):
    """Its ``parser`` may be anything, and without a guard it would train."""
    monkeypatch.setattr(sys, "argv", ["blockswap", "check", "config.yml"])
    name = f"mine_{abs(hash(program))}"
    options = "import argparse\noptions = argparse.ArgumentParser()\noptions.add_argument('--data')\n"
    (tmp_path / f"{name}.py").write_text(f"{options}{program}\n")
    monkeypatch.chdir(tmp_path)
    command = f"python {name}.py --data images{' --bets 1' if fault else ''}"
    monkeypatch.syspath_prepend(tmp_path)
    found = list(command_faults(Config(written(trialCommand=command, trialCodeDirectory=str(tmp_path)))))
    assert [fault in sentence for sentence in found] == ([True] if fault else [])
    assert not (tmp_path / "imported").exists()


def test_all_faults_come_at_once(written, capsys):
    path = written(
        trialConcurency=1, maxTrialNumber=9, tuner__classArgs__budget="1K", tuner__classArgs__data="mnist",
        trialCommand="python -m trial.distill --data mnist --bets 3",
    )  # fmt: skip
    assert main(["check", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith(f"{path}: ") for line in lines)


def test_a_comparisons_faults_come_at_once(written):
    compared = {"budgets": ["200K", "1K", "abc"], "single": ["G(3)"], "methods": ["blockswap", "snip"], "seeds": 1}
    path = written(tuner__classArgs__comparison=compared, tuner__classArgs__students=12)
    fatal = [fault.sentence for fault in find_faults(path) if fault.fatal]
    for part in ("has 7 trials and students is 12", "G(3)", "950 to 1,050", "'abc'"):
        assert sum(part in sentence for sentence in fatal) == 1, (part, fatal)


def test_harmless_oddities_are_warnings(written, capsys):
    assert main(["check", str(written(trialConcurrency=2, maxTrialNumber=2))]) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert all(": warning: " in line for line in warnings)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        ("a: [1", "is not YAML"),
        ("- a", "maps fields to values"),
        ("", "maps fields to values"),
        ("a: 1\nb: {c: 1, c: 2}\n", "the key 'c' is there twice (line 2)"),
        ("a: &a [1, *a]", "a value contains itself (line 1)"),
        ('a: "\\0"', "a text has a NUL (line 1)"),
        ("a: 2020-99-99", "is not YAML: month must be in 1..12"),
        ("[" * 100_000, "is nested too deeply"),
        (
            "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 9)),
            "holds more than 10,000 values",
        ),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, capsys, content, sentence):
    path = tmp_path / "config.yml"
    if content is not None:
        path.write_text(content)
    assert main(["check", str(path)]) == 2
    assert sentence in capsys.readouterr().err

"""What is left of an experiment: the table of its students, and blockswap export."""

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from nni_blockswap import Architecture
from nni_blockswap.cli import main
from nni_blockswap.cli.summary import print_students
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.students import Students
from nni_blockswap.files import read_json, write_json
from tests.conftest import SMALL, WRN

ROOT = Path(__file__).parents[2]


def finished(folder, accuracies):
    """An experiment's folder with trained students of these accuracies; their architectures."""
    students = [Architecture.from_choices(WRN, [name] * 3, SMALL).scored(0.5, {}) for name in ("S", "B(2)", "G(2)")][
        : len(accuracies)
    ]
    table = Students.select(folder / "checkpoint" / "students.json", students)
    for number, (student, accuracy) in enumerate(zip(students, accuracies, strict=True)):
        out = folder / "environments" / "local-env" / "trials" / f"t{number}"
        result = {
            "accuracy": accuracy,
            "teacher_accuracy": 0.99,
            "architecture_id": student.id,
            "params": student.params,
        }
        write_json(out / "result.json", result)
        student.save(out / "architecture.json")
        torch.save(student.build().state_dict(), out / "weights.pt")
        table.succeeded(student.id, accuracy)
    return students


def test_the_table_names_costs_accuracies_teacher_and_folders(tmp_path, capsys):
    students = finished(tmp_path, [0.9, 0.8])
    config = Config(ROOT / "config.yml")
    assert print_students(tmp_path, config)
    lines = [line.split(maxsplit=7) for line in capsys.readouterr().out.splitlines() if line]
    trials = tmp_path / "environments" / "local-env" / "trials"
    assert lines[1][:5] == ["1", f"{students[0].params:,}", f"{students[0].macs:,}", "0.5", "90.00%"]
    assert lines[2][:5] == ["2", f"{students[1].params:,}", f"{students[1].macs:,}", "0.5", "80.00%"]
    assert [line[-1] for line in lines[1:3]] == [str(trials / "t0"), str(trials / "t1")]
    assert lines[3][:4] == ["teacher", f"{students[0].params:,}", f"{students[0].macs:,}", "99.00%"]


def test_a_student_that_failed_fails_the_run(tmp_path, capsys):
    students = finished(tmp_path, [0.9, 0.8])
    (tmp_path / "environments" / "local-env" / "trials" / "t1" / "result.json").unlink()
    table = Students.select(tmp_path / "checkpoint" / "students.json", students)
    table.failed(students[1].id)
    assert not print_students(tmp_path, Config(ROOT / "config.yml"))
    assert "failed" in capsys.readouterr().out


def test_export_takes_the_best_trial_and_its_weights_fit(tmp_path, capsys):
    best = finished(tmp_path / "experiment", [0.8, 0.9, 0.7])[1]
    assert main(["export", str(tmp_path / "experiment"), "--out", str(tmp_path / "out")]) == 0
    taken = Architecture.load(tmp_path / "out" / "architecture.json")
    assert taken.id == best.id
    taken.build().load_state_dict(torch.load(tmp_path / "out" / "weights.pt", weights_only=True))


def test_a_detector_is_judged_by_its_box_ap(tmp_path, capsys):
    best = finished(tmp_path / "experiment", [0.2, 0.3])[1]
    for path in (tmp_path / "experiment").rglob("result.json"):
        result = read_json(path)
        result["box_AP"], result["mask_AP"] = result.pop("accuracy"), 0.1
        write_json(path, result)
    assert main(["export", str(tmp_path / "experiment"), "--out", str(tmp_path / "out")]) == 0
    assert "box AP 30.00%" in capsys.readouterr().out
    assert Architecture.load(tmp_path / "out" / "architecture.json").id == best.id
    assert print_students(tmp_path / "experiment", Config(ROOT / "experiments" / "coco_mask_rcnn.yml"))
    table = capsys.readouterr().out
    assert "box AP" in table.splitlines()[1]
    assert "20.00%" in table.splitlines()[2]


def test_export_finds_an_experiment_by_its_id(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_json(tmp_path / "nni-experiments" / ".experiment", {"xyz": {"logDir": str(tmp_path / "elsewhere")}})
    finished(tmp_path / "elsewhere" / "xyz", [0.8])
    assert main(["export", "xyz", "--out", str(tmp_path / "out")]) == 0
    assert main(["export", "abc", "--out", str(tmp_path / "out")]) == 2
    assert "there is no experiment 'abc' and no such folder; NNI knows xyz" in capsys.readouterr().err


def test_export_of_what_is_not_there(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no trial of experiment" in capsys.readouterr().err


def trial(folder, accuracy=0.9, substitute="B(2)"):
    """A folder such as ``python -m trial.distill --out`` leaves."""
    student = Architecture.from_choices(WRN, [substitute] * 3, SMALL)
    student.save(folder / "architecture.json")
    torch.save(student.build().state_dict(), folder / "weights.pt")
    result = {"accuracy": accuracy, "architecture_id": student.id, "params": student.params, "macs": student.macs}
    write_json(folder / "result.json", result)
    return student


@pytest.mark.parametrize(("lacking", "is_told"), [("architecture.json", True), ("weights.pt", False)])
def test_what_distill_wrote_from_python_is_exported_there(lacking, is_told, tmp_path, capsys):
    trial(tmp_path / "student")
    (tmp_path / "student" / lacking).unlink()
    assert main(["export", str(tmp_path / "student"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{lacking}' is missing; run the trial again" in said
    assert ("where distill wrote the folder, export its student in Python: nni_blockswap.export(" in said) is is_told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("above", [False, True])
def test_export_and_report_take_any_folder_that_a_trial_wrote(above, tmp_path, capsys):
    student = trial(tmp_path / "runs" / "student")
    where = tmp_path / "runs" if above else tmp_path / "runs" / "student"
    assert main(["export", str(where), "--out", str(tmp_path / "out")]) == 0
    assert Architecture.load(tmp_path / "out" / "architecture.json").id == student.id
    assert main(["report", str(where), "--out", str(tmp_path / "report"), "--latency-batch", "0"]) == 0
    assert student.id in capsys.readouterr().out


@pytest.mark.parametrize("formats", [[], ["--format", "safetensors"]], ids=["copied", "exported"])
@pytest.mark.parametrize("damage", ["changed", "cut", "header"])
def test_weights_that_are_damaged_are_not_exported(formats, damage, tmp_path, capsys):
    trial(tmp_path / "student")
    path = tmp_path / "student" / "weights.pt"
    content = bytearray(path.read_bytes())
    weight = next(iter(torch.load(path, weights_only=True).values()))
    if damage == "cut":
        del content[-100:]
    else:
        content[0 if damage == "header" else content.index(weight.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert main(["export", str(tmp_path / "student"), "--out", str(tmp_path / "out"), *formats]) == 2
    assert "weights.pt' cannot be read, it may be damaged: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_told_in_one_line(tmp_path, capsys):
    trial(tmp_path / "student")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "student" / "weights.pt")
    assert main(["export", str(tmp_path / "student"), "--out", str(tmp_path / "out"), "--format", "pt2"]) == 2
    assert "weights.pt' does not fit its architecture: Error(s) in loading" in capsys.readouterr().err


def test_of_trials_side_by_side_the_best_is_exported(tmp_path):
    trial(tmp_path / "runs" / "a", 0.8)
    best = trial(tmp_path / "runs" / "deep" / "b", 0.9, "G(2)")
    assert main(["export", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert Architecture.load(tmp_path / "out" / "architecture.json").id == best.id


def test_of_several_trainings_of_one_architecture_the_best_is_exported_and_not_the_last(tmp_path, capsys):
    for number, accuracy in enumerate([0.8, 0.9, 0.7]):
        trial(tmp_path / "runs" / f"seed{number}", accuracy)
        os.utime(tmp_path / "runs" / f"seed{number}" / "result.json", (1e9 + number, 1e9 + number))
    assert main(["export", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "accuracy 90.00%" in capsys.readouterr().out


def test_trials_that_are_judged_by_different_things_have_no_best(tmp_path, capsys):
    trial(tmp_path / "a")
    trial(tmp_path / "b", 0.3, "G(2)")
    result = read_json(tmp_path / "b" / "result.json")
    write_json(tmp_path / "b" / "result.json", {**result, "metric": {"name": "loss"}, "loss": 0.3})
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "are judged by accuracy and by loss; name the folder of one" in capsys.readouterr().err


def test_export_in_several_formats(tmp_path, capsys):
    student = trial(tmp_path / "student")
    command = ["export", str(tmp_path / "student"), "--out", str(tmp_path / "out")]
    assert main([*command, "--format", "pt2", "safetensors", "--fold-bn"]) == 0
    names = ["architecture.json", "model.pt2", "model.py", "model.safetensors", "result.json", "weights.pt"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert f"{tmp_path / 'out' / 'model.pt2'}: " in capsys.readouterr().out
    network = student.build().eval()
    network.load_state_dict(torch.load(tmp_path / "student" / "weights.pt", weights_only=True))
    images = torch.randn(5, 1, 8, 8)
    found = torch.export.load(tmp_path / "out" / "model.pt2").module()(images)
    torch.testing.assert_close(found, network(images), rtol=1e-3, atol=1e-4)
    assert "BatchNorm2d(16)" in (tmp_path / "out" / "model.py").read_text()  # of the block, before its branch
    assert "bias=False)" in (tmp_path / "out" / "model.py").read_text()


def test_files_that_no_export_has_made_stay_where_they_are(tmp_path):
    trial(tmp_path / "student", 0.5)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("weights.pt", "model.py", "model.safetensors", "model.onnx"):
        (out / name).write_text("somebody's own")
    assert main(["export", str(tmp_path / "student"), "--out", str(out)]) == 0
    trial(tmp_path / "student" / "better", 0.9, "G(2)")  # now out is one of an export, but for its model.py
    assert main(["export", str(tmp_path / "student"), "--out", str(out)]) == 0
    assert (out / "model.py").read_text() == "somebody's own"


def test_another_networks_files_do_not_stay_beside_the_new_weights(tmp_path, capsys):
    trial(tmp_path / "student", 0.5)
    command = ["export", str(tmp_path / "student"), "--out", str(tmp_path / "out")]
    assert main([*command, "--format", "safetensors"]) == 0
    assert main(command) == 0  # the same once more
    assert (tmp_path / "out" / "model.safetensors").exists()
    trial(tmp_path / "student" / "better", 0.9, "G(2)")
    assert main(command) == 0
    assert f"{tmp_path / 'out' / 'model.py'}: removed, as it was of other weights" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "architecture.json", "result.json", "weights.pt",
    ]  # fmt: skip


def test_folding_without_a_file_to_fold_it_in_is_refused(tmp_path, capsys):
    trial(tmp_path / "student")
    assert main(["export", str(tmp_path / "student"), "--out", str(tmp_path / "out"), "--fold-bn"]) == 2
    assert "--fold-bn is of the files that --format names; name a format" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_onnx_has_a_short_option_of_its_own(tmp_path):
    trial(tmp_path / "student")
    assert main(["export", str(tmp_path / "student"), "--out", str(tmp_path / "out"), "--onnx"]) == 0
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)


def test_a_damaged_result_is_named(tmp_path, capsys):
    trial(tmp_path / "student")
    (tmp_path / "student" / "result.json").write_text("{")
    assert main(["export", str(tmp_path / "student"), "--out", str(tmp_path / "out")]) == 2
    assert f"'{tmp_path / 'student' / 'result.json'}' is damaged" in capsys.readouterr().err


def test_the_how_to_works_as_it_stands(tmp_path, monkeypatch):
    """Its commands in a folder with a trained student of WRN-10-1, then its Python where only their files are."""
    monkeypatch.chdir(tmp_path)
    trial(tmp_path / "runs" / "student")
    text = (ROOT / "docs" / "export.md").read_text()
    commands = re.findall(r"^    blockswap (.+)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main(command.split()) == 0
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    script = blocks.replace("torch.zeros(8, 3, 32, 32)", "torch.zeros(8, 1, 8, 8)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "out", env=environment, check=True, timeout=120)

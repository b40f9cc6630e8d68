"""What is left of an experiment: the table of its students, and blockswap export."""

from pathlib import Path

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
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    trials = tmp_path / "environments" / "local-env" / "trials"
    assert lines[1] == ["1", f"{students[0].params:,}", f"{students[0].macs:,}", "0.5", "90.00%", str(trials / "t0")]
    assert lines[2] == ["2", f"{students[1].params:,}", f"{students[1].macs:,}", "0.5", "80.00%", str(trials / "t1")]
    assert lines[3] == ["teacher", f"{students[0].params:,}", f"{students[0].macs:,}", "99.00%"]


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
    assert "there is no experiment 'abc'; NNI knows xyz" in capsys.readouterr().err


def test_export_of_what_is_not_there(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no trial of experiment" in capsys.readouterr().err


def test_export_to_onnx_or_a_sentence(tmp_path, capsys):
    finished(tmp_path / "experiment", [0.8])
    status = main(["export", str(tmp_path / "experiment"), "--out", str(tmp_path / "out"), "--onnx"])
    try:
        import onnx
    except ImportError:
        assert status == 2
        assert "torch.onnx needs the packages onnx and onnxscript" in capsys.readouterr().err
        return
    assert status == 0
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))

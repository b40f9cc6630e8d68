"""The table of students: costs, latency and size of each network, its teacher last."""

import json
from pathlib import Path

import pytest

from nni_blockswap.architecture import Architecture
from nni_blockswap.cli import summary
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.students import SUCCEEDED, Students
from nni_blockswap.metric import Metric
from nni_blockswap.studies import latency
from nni_blockswap.studies.latency import Timing
from tests.conftest import SMALL, WRN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An experiment's: two students, the first of which was trained."""
    architectures = [Architecture.from_choices(WRN, choices, SMALL) for choices in (["G(4)"] * 3, ["B(2)"] * 3)]
    (tmp_path / "checkpoint").mkdir()
    students = Students.select(tmp_path / "checkpoint" / "students.json", architectures)
    students.next()
    first = architectures[0]
    students.succeeded(first.id, 0.9)
    (tmp_path / "trial").mkdir()
    result = {"accuracy": 0.9, "teacher_accuracy": 0.95, "params": first.params, "architecture_id": first.id}
    (tmp_path / "trial" / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.yml").write_text("tuner: {classArgs: {data: digits}}")
    return tmp_path


def test_what_was_trained_is_measured_beside_its_teacher(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    together: list[set[str]] = []

    def measured(networks: dict[str, object]) -> dict[str, Timing]:
        together.append(set(networks))
        return {name: Timing(0.0015 * (1 + place), 0.0) for place, name in enumerate(networks)}

    monkeypatch.setattr(latency, "measure", measured)
    assert not summary.print_students(folder, Config(folder / "config.yml"))
    first = Architecture.from_choices(WRN, ["G(4)"] * 3, SMALL)
    assert together == [{first.id, first.teacher().id}]
    header, one, two, teacher, *_ = [line for line in capsys.readouterr().out.splitlines() if line]
    assert header.split()[-3:] == ["ms", "MB", "files"]
    assert "90.00%  1.50" in one
    assert "waiting" in two
    assert "." not in two.partition("waiting")[2]  # nothing was measured
    assert "95.00%  3.00" in teacher


@pytest.mark.parametrize(
    ("arguments", "heading"),
    [
        ("data: digits", "Fisher potential"),
        ("data: digits, proxy: taylor", "taylor"),
        ("data: digits, proxy: library, comparison: {methods: [library, blockswap, random]}", "score"),
    ],
)
def test_scores_of_several_proxies_do_not_stand_below_the_name_of_one(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    heading: str,
) -> None:
    monkeypatch.setattr(summary, "MEASURED", 0)
    (folder / "config.yml").write_text(f"tuner: {{classArgs: {{{arguments}}}}}")
    summary.print_students(folder, Config(folder / "config.yml"))
    header = next(line for line in capsys.readouterr().out.splitlines() if line)
    assert header.partition("MACs")[2].partition("accuracy")[0].strip() == heading


def test_so_many_are_not_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "MEASURED", 1)
    monkeypatch.setattr(latency, "measure", lambda networks: pytest.fail("it would take minutes"))
    summary.print_students(folder, Config(folder / "config.yml"))


def test_a_student_that_succeeded_is_one_of_the_good(folder: Path) -> None:
    path = folder / "checkpoint" / "students.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))
    assert json.loads(path.read_text())[0]["state"] == SUCCEEDED
    assert summary.print_students(folder, Config(folder / "config.yml"))


def test_a_metric_of_ones_own_heads_its_column_down_to_the_teacher(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(summary, "MEASURED", 0)
    path = folder / "trial" / "result.json"
    metric = Metric("mean error", higher_is_better=False, is_share=False).recorded()
    result = {**json.loads(path.read_text()), "metric": metric, "mean_error": 12.5, "teacher_mean_error": 9.5}
    path.write_text(json.dumps(result))
    (folder / "config.yml").write_text("tuner: {classArgs: {data: 'my_data:ages'}}")
    summary.print_students(folder, Config(folder / "config.yml"))
    header, one, _, teacher, *_ = [line for line in capsys.readouterr().out.splitlines() if line]
    assert "mean error" in header
    assert one.split()[3] == "12.5"
    assert teacher.split()[-1] == "9.5"

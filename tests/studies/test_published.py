"""The paper's tables, and a run laid beside them: which rows belong together, and by how much they differ."""

import csv
import json

import pytest

from nni_blockswap.cli import main
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.studies.published import Row, Table, beside, lay_beside, published, read_rows
from tests.studies.test_report import ARGUMENTS, GROUPED, MIXED, ORIGINAL, trial

PARAMS = 77_562  # of the original with ARGUMENTS


def test_the_tables_hold_what_the_paper_says() -> None:
    blockswap = [row for row in published("2").rows if row.method == "blockswap"]
    assert [row.figures["error"] for row in blockswap] == [3.79, 4.17, 4.21, 4.45, 4.68, 5.17]
    assert [row for row in published("C").rows if row.method == "blockswap"] == blockswap
    assert blockswap[0].share == pytest.approx(811.4 / 2243.546)
    assert (blockswap[0].macs, blockswap[0].spread) == (132.5e6, 0.01)
    last = published("C").rows[-1]
    assert (last.method, last.params, last.figures["error"], last.spread) == ("l1-pruning", 223_700, 11.93, 0.77)
    assert [row.figures["top5_error"] for row in published("3").rows] == [8.57, 10.05, 8.43, 7.75, 15.02, 10.66, 10.2]
    grouped, swapped = published("4").rows
    assert list(swapped.figures.values()) == [23.4, 40.0, 24.7, 13.6, 24.2, 31.1]
    assert list(grouped.figures.values()) == [22.3, 38.9, 23.0, 12.9, 22.9, 30.7]


def test_blockswap_beats_what_the_paper_says_it_beats() -> None:
    """A slip of the typist would most likely break one of these."""
    for name in ("2", "C"):
        best = {row.params: row.figures["error"] for row in published(name).rows if row.method == "blockswap"}
        for row in published(name).rows:
            if row.method in ("snip", "random"):
                closest = min(best, key=lambda params: abs(params - row.params))
                assert row.figures["error"] > best[closest]


def test_a_table_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="its tables 2, 3, 4, C, not of '5'"):
        published("5")


def row(method: str, variant: str, share: float | None, error: float) -> Row:
    return Row(method, variant, None, None, share, {"error": error})


def test_rows_belong_together_by_variant_or_by_size() -> None:
    table = Table("t", "s", {"error": "error %"}, (
        row("blockswap", "", 0.36, 4), row("blockswap", "", 0.18, 5), row("single", "D", 0.14, 6),
        row("snip", "", 0.36, 7), row("condensenet", "", 0.23, 8),
    ))  # fmt: skip
    run = [
        row("blockswap", "18%", 0.181, 50), row("blockswap", "36%", 0.365, 40), row("single", "D", 0.9, 60),
        row("snip", "50%", 0.5, 70), row("single", "G(4)", 0.14, 80),
        row("condensenet", "", 1.0, 90),
    ]  # fmt: skip
    found = [(paper and paper.figures["error"], own and own.figures["error"]) for paper, own in beside(table, run)]
    assert found == [(4, 40), (5, 50), (6, 60), (7, None), (8, 90), (None, 70), (None, 80)]


@pytest.fixture
def run(tmp_path):
    """Of networks with 36 % of the original's parameters and of 811.4K in the paper's; two seeds, and a teacher."""
    folder = tmp_path / "trials"
    sparse = {"method": "snip", "variant": "36%", "params": round(PARAMS * 0.362)}
    for seed, error in enumerate([10, 12]):
        trial(folder / f"snip{seed}", ORIGINAL, 1 - error / 100, 0.95, seed=seed, **sparse)
    trial(folder / "single", GROUPED, 0.8, 0.95, seed=0, method="single", variant="G(4)")
    return tmp_path


def test_a_run_is_laid_beside_the_paper_with_the_difference(run) -> None:
    text = lay_beside("2", [run], run / "out")
    assert text in (run / "out" / "table_2.md").read_text(encoding="utf-8")
    with (run / "out" / "table_2.csv").open(encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    (snip,) = [one for one in rows if one[0] == "snip" and one[2]]
    # mean 11, deviations 1 and 1: sqrt(2 / (2 - 1)); the paper's SNIP has 4.13
    assert snip[1:5] == ["36%", "2", "28,077", "811,400"]
    assert snip[7:10] == ["11.00 ± 1.41", "4.13", "+6.87"]
    (single,) = [one for one in rows if one[1] == "G(4)"]
    assert single[7:10] == ["20.00", "", ""]
    (teacher,) = [one for one in rows if one[0] == "teacher"]
    assert (teacher[3], teacher[7]) == (f"{PARAMS:,}", "5.00")
    missing = [one for one in rows if one[0] == "blockswap"]
    assert [one[8][:4] for one in missing] == ["3.79", "4.17", "4.21", "4.45", "4.68", "5.17"]
    assert {one[7] for one in missing} == {""}


def test_top5_and_box_ap_are_in_percent(tmp_path) -> None:
    trial(tmp_path / "a", MIXED, 0.7, None, top5=0.9, method="single", variant="G(N)")
    (found,) = read_rows([tmp_path], published("3"))
    assert found.figures == pytest.approx({"error": 30, "top5_error": 10})
    boxes = dict(zip(published("4").figures, (0.2, 0.4, 0.2, 0.1, 0.2, 0.3), strict=True))
    trial(tmp_path / "b", MIXED, 0.7, None, **boxes)
    (found,) = read_rows([tmp_path], published("4"))
    assert list(found.figures.values()) == pytest.approx([20, 40, 20, 10, 20, 30])


def test_seeds_by_hand_are_trials_of_one_row_and_a_teacher_counts_once(tmp_path) -> None:
    for seed, accuracy in enumerate([0.95, 0.93, 0.9]):
        trial(tmp_path / f"{seed}", MIXED, accuracy, [0.98, 0.98, 0.95][seed], seed=None)
        (tmp_path / f"{seed}" / "settings.json").write_text(json.dumps({"seed": seed}))
    student, teacher = read_rows([tmp_path], published("2"))
    assert (student.trials, student.figures["error"]) == (3, pytest.approx(22 / 3))
    assert teacher.figures["error"] == pytest.approx(3)


def test_a_run_without_the_tables_figures_says_so(tmp_path) -> None:
    trial(tmp_path / "a", MIXED, 0.7)
    with pytest.raises(StateError, match="no trial here has error, top5_error, as 'Table 3"):
        read_rows([tmp_path], published("3"))


def test_the_command_prints_the_table(run, capsys) -> None:
    assert main(["report", str(run), "--table", "2", "--out", str(run / "out")]) == 0
    assert "+6.87" in capsys.readouterr().out
    assert not (run / "out" / "report.md").exists()


def test_arguments_have_the_parameters_that_are_assumed_here(tmp_path) -> None:
    assert trial(tmp_path, ORIGINAL, 0.5, space_args=ARGUMENTS).params == PARAMS

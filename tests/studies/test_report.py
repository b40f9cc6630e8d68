"""The report: means and spreads against hand-made figures, what belongs together, and its files."""

import csv
import json
import os

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nni_blockswap.architecture import Architecture
from nni_blockswap.cli import main
from nni_blockswap.errors import StateError
from nni_blockswap.studies.error_figure import figure, title_of
from nni_blockswap.studies.latency import Timing, measure
from nni_blockswap.studies.report import report
from nni_blockswap.studies.trials import points, read_trials, teacher_point
from nni_blockswap.training import checkpoints
from nni_blockswap.training.folder import occupied

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
ARGUMENTS = {"depth": 10, "width": 1, "in_channels": 1, "image_size": 8}
MIXED, GROUPED, ORIGINAL = ["G(4)", "S", "B(2)"], ["G(4)"] * 3, ["S"] * 3


def trial(folder, choices, accuracy, teacher=0.95, space_args=ARGUMENTS, age=0, seed=None, **result):
    """A trial's folder as ``trial.distill`` leaves it."""
    architecture = Architecture.from_choices(SPACE, choices, space_args)
    architecture.save(folder / "architecture.json")
    named = {} if seed is None else {"seed": seed}
    content = {"accuracy": accuracy, "params": architecture.params, "macs": architecture.macs, **named, **result}
    content |= {} if teacher is None else {"teacher_accuracy": teacher}
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "settings.json").write_text(json.dumps({"seed": seed or 0}))
    os.utime(folder / "result.json", (1e9 - age, 1e9 - age))
    return architecture


@pytest.fixture
def experiment(tmp_path):
    """Two seeds of three methods, as NNI's folders have them, and a third seed of one of them."""
    trials = tmp_path / "experiment" / "environments" / "local-env" / "trials"
    for seed, errors in enumerate([(10, 20, 40), (12, 26, 44)]):
        for (method, choices), error in zip(
            [("blockswap", MIXED), ("random", [MIXED, GROUPED][seed]), ("snip", ORIGINAL)], errors, strict=True
        ):
            more = {"params": 20_000} if method == "snip" else {}
            named = {"method": method, "variant": "40K", **more}
            trial(trials / f"{method}{seed}", choices, 1 - error / 100, 0.95 - seed / 100, seed=seed, **named)
    trial(trials / "blockswap2", MIXED, 0.83, 0.95, seed=2, method="blockswap", variant="40K")
    (trials / "unfinished").mkdir()
    return tmp_path / "experiment"


def test_mean_and_spread_over_seeds(experiment):
    by_method = {point.method: point for point in points(read_trials([experiment]))}
    assert by_method["blockswap"].error == pytest.approx((10 + 12 + 17) / 3)
    # deviations -3, -1 and 4 from the mean 13: (9 + 1 + 16) / (3 - 1) = 13
    assert by_method["blockswap"].spread == pytest.approx(13**0.5)
    assert by_method["random"].spread == pytest.approx(18**0.5)  # two seeds, two architectures, one point
    mixed, grouped = (Architecture.from_choices(SPACE, choices, ARGUMENTS) for choices in (MIXED, GROUPED))
    assert by_method["random"].params == (mixed.params + grouped.params) / 2
    assert by_method["snip"].params == 20_000
    assert by_method["snip"].macs == mixed.teacher().macs  # zeros are multiplied too


def test_a_single_trial_has_no_spread(tmp_path):
    trial(tmp_path / "a", MIXED, 0.9)
    (only,) = points(read_trials([tmp_path]))
    assert only.spread is None


def test_a_repeated_trial_counts_once_and_its_later_result_holds(tmp_path):
    trial(tmp_path / "first" / "a", MIXED, 0.5, age=100, seed=0, method="random", variant="40K")
    trial(tmp_path / "again" / "b", MIXED, 0.9, age=0, seed=0, method="random", variant="40K")
    trial(tmp_path / "again" / "c", MIXED, 0.7, age=0, seed=0, method="blockswap", variant="40K")
    found = read_trials([tmp_path / "again", tmp_path / "first"])
    assert {one.method: round(one.error, 6) for one in found} == {"random": 10, "blockswap": 30}


def test_trainings_of_one_architecture_that_differ_in_recipe_or_space_are_points_of_their_own(tmp_path):
    for beta, accuracy in ((0, 0.8), (9, 0.9)):
        architecture = trial(tmp_path / f"beta{beta}", MIXED, accuracy)
        (tmp_path / f"beta{beta}" / "settings.json").write_text(json.dumps({"seed": 0, "beta": beta, "run": str(beta)}))
    found = [(point.variant, point.error) for point in points(read_trials([tmp_path]))]
    assert found == [
        (f"{architecture.id}, beta=0", pytest.approx(20)),
        (f"{architecture.id}, beta=9", pytest.approx(10)),
    ]
    named = {"method": "random", "variant": "30%"}
    for width, accuracy in ((1, 0.9), (2, 0.8)):
        trial(tmp_path / "spaces" / str(width), MIXED, accuracy, space_args={**ARGUMENTS, "width": width}, **named)
    found = [(point.variant, len(point.trials)) for point in points(read_trials([tmp_path / "spaces"]))]
    assert found == [("30%, width=1", 1), ("30%, width=2", 1)]


def test_teachers_that_err_alike_are_several_and_a_given_one_is_one(tmp_path):
    for seed, teacher in enumerate([0.99, 0.99, 0.96]):
        trial(tmp_path / f"{seed}", MIXED, 0.9, teacher, seed=seed, method="random", variant="30%")
        trial(tmp_path / f"more{seed}", GROUPED, 0.9, teacher, seed=seed, method="single", variant="G(4)")
    point = teacher_point(read_trials([tmp_path]))
    assert (len(point.trials), point.error) == (3, pytest.approx(2))
    for seed in range(3):
        trial(tmp_path / "given" / f"{seed}", MIXED, 0.9, 0.99, seed=seed, method="random", variant="30%")
        settings = {"seed": seed, "teacher": "teacher.pt"}
        (tmp_path / "given" / f"{seed}" / "settings.json").write_text(json.dumps(settings))
    assert len(teacher_point(read_trials([tmp_path / "given"])).trials) == 1


def test_a_teacher_a_seed_makes_no_variant_a_seed(tmp_path):
    for seed in range(2):
        trial(tmp_path / f"{seed}", MIXED, 0.9, 0.99, seed=seed, method="random", variant="30%")
        settings = {"seed": seed, "teacher": f"teacher{seed}.pt", "beta": 9}
        (tmp_path / f"{seed}" / "settings.json").write_text(json.dumps(settings))
    assert [(point.variant, len(point.trials)) for point in points(read_trials([tmp_path]))] == [("30%", 2)]


def test_a_run_that_was_made_longer_is_no_variant_of_its_own(tmp_path):
    for seed, before in enumerate(([4], [4, 6])):
        trial(tmp_path / f"{seed}", MIXED, 0.9, seed=seed, method="random", variant="30%")
        for epochs in (*before, 8):
            with occupied(tmp_path / f"{seed}", {"seed": seed, "epochs": epochs}, {}):
                checkpoints.save({}, tmp_path / f"{seed}" / "weights.pt")
    assert [(point.variant, len(point.trials)) for point in points(read_trials([tmp_path]))] == [("30%", 2)]


def test_what_an_earlier_report_wrote_is_no_front(tmp_path):
    architecture = trial(tmp_path / "trial", MIXED, 0.9)
    searched = tmp_path / "search" / "front.csv"
    searched.parent.mkdir()
    searched.write_text(f"budget,score,params,macs,id\n30%,1.5,{architecture.params},7,{architecture.id}\n")
    for name in ("first", "second"):
        report([tmp_path], tmp_path / name, None)
        rows = list(csv.reader((tmp_path / name / "front.csv").read_text().splitlines()))
        assert [row[:3] for row in rows] == [["budget", "score", "error"], ["30%", "1.5", "9.999999999999998"]]
        assert not (tmp_path / name / "front_2.csv").exists()


def test_an_ordinary_experiment_has_a_point_for_each_student(tmp_path):
    ids = [trial(tmp_path / str(i), choices, 0.9, seed=0).id for i, choices in enumerate([MIXED, GROUPED])]
    found = points(read_trials([tmp_path]))
    assert {point.method for point in found} == {"blockswap"}
    assert {point.variant for point in found} == set(ids)


@pytest.mark.parametrize(
    ("name", "one", "other"), [("data", "cifar10", "digits"), ("epochs", 200, 3), ("data_options", {}, {"limit": 9})]
)
def test_errors_that_cannot_be_compared_are_not(tmp_path, name, one, other):
    for folder, value in (("a", one), ("b", other)):
        trial(tmp_path / folder, MIXED, 0.9, seed=0, method=folder, variant="40K")
        (tmp_path / folder / "settings.json").write_text(json.dumps({"seed": 0, name: value}))
    with pytest.raises(StateError, match=rf"errors are compared at the same {name}; .*: report them apart"):
        read_trials([tmp_path])


def test_the_teacher_is_the_students_original_and_not_a_reduced_one(tmp_path):
    trial(tmp_path / "r", ORIGINAL, 0.9, 0.96, {**ARGUMENTS, "width": 2}, method="reduced", variant="width=2")
    trial(tmp_path / "b", MIXED, 0.9, 0.96, method="blockswap", variant="40K")
    teacher = teacher_point(read_trials([tmp_path]))
    assert teacher.params == Architecture.from_choices(SPACE, ORIGINAL, ARGUMENTS).params
    assert [one.error for one in teacher.trials] == [pytest.approx(4)]


def test_files_and_table(experiment, tmp_path):
    shown = report([experiment], tmp_path / "out", latency_batch=None)
    rows = list(csv.DictReader((tmp_path / "out" / "report.csv").open()))
    assert [(row["method"], row["trials"]) for row in rows] == [
        ("blockswap", "3"),
        ("random", "2"),
        ("snip", "2"),
        ("teacher", "3"),  # one a seed, though two of them err alike
    ]
    assert float(rows[0]["error"]) == pytest.approx(13)
    assert "13.00" in shown
    assert shown in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))) == 7


def test_students_of_one_budget_are_points_with_names_and_methods_over_budgets_are_curves(experiment, tmp_path):
    for budget, choices in (("20K", GROUPED), ("60K", ORIGINAL)):
        trial(experiment / budget, choices, 0.8, method="blockswap", variant=budget)
    students = [trial(tmp_path / "alone" / str(i), choices, 0.9) for i, choices in enumerate([MIXED, GROUPED])]

    def drawn(folder, latencies=None):
        trials = read_trials([folder])
        compared = [*points(trials), teacher_point(trials)]
        latencies = {one.trials[0].architecture.id: Timing(0.002, 0.0) for one in compared} if latencies else {}
        return figure(compared, latencies, title_of(trials))

    lines = {line.get_linestyle() for line in drawn(tmp_path / "alone").axes[0].containers[0].lines[:1]}
    assert lines == {"None"}
    assert {text.get_text() for text in drawn(tmp_path / "alone").axes[0].texts} == {one.id for one in students}
    curve = drawn(experiment).axes[0].containers[0].lines[0]
    assert (curve.get_linestyle(), len(curve.get_xdata())) == ("-", 3)
    panels = drawn(experiment, latencies=True).axes
    assert [axes.get_xlabel().split()[0] for axes in panels] == ["parameters", "MACs", "latency"]
    assert set(panels[2].containers[0].lines[0].get_xdata()) == {2.0}


def test_a_label_stays_in_its_panel_where_the_student_is_the_slowest(tmp_path):
    slowest = trial(tmp_path / "a", MIXED, 0.9)
    trials = read_trials([tmp_path])
    teacher = teacher_point(trials)
    latencies = {slowest.id: Timing(0.003, 0.0), teacher.trials[0].architecture.id: Timing(0.001, 0.0)}
    drawn = figure([*points(trials), teacher], latencies, "")
    FigureCanvasAgg(drawn).draw()
    for axes in drawn.axes:
        (label,) = axes.texts
        assert axes.bbox.x0 < label.get_window_extent().x0 < label.get_window_extent().x1 < axes.bbox.x1


def test_labels_of_two_that_err_and_cost_alike_do_not_overlap(tmp_path):
    for number, choices in enumerate([GROUPED, ["G(8)", "G(4)", "G(4)"]]):
        trial(tmp_path / str(number), choices, 0.9)
    trials = read_trials([tmp_path])
    drawn = figure([*points(trials), teacher_point(trials)], {}, "")
    FigureCanvasAgg(drawn).draw()
    for axes in drawn.axes:
        one, other = (text.get_window_extent() for text in axes.texts)
        assert not one.overlaps(other)


def test_the_title_says_what_was_trained_on_what_for_how_long(tmp_path):
    trial(tmp_path / "a", MIXED, 0.9)
    (tmp_path / "a" / "settings.json").write_text(json.dumps({"seed": 0, "data": "digits", "epochs": 12}))
    original = Architecture.from_choices(SPACE, ORIGINAL, ARGUMENTS)
    title = title_of(read_trials([tmp_path]))
    assert title == f"WideResNetSpace of {original.params:,} parameters on digits, 12 epochs"
    report([tmp_path], tmp_path / "out", latency_batch=None)
    assert title in (tmp_path / "out" / "report.md").read_text()


def test_size_on_disk_is_that_of_the_file_of_the_weights(tmp_path):
    network = trial(tmp_path / "a", MIXED, 0.9).build()
    checkpoints.save(checkpoints.plain_state(network), tmp_path / "weights.pt")
    report([tmp_path], tmp_path / "out", latency_batch=None)
    (student, teacher) = csv.DictReader((tmp_path / "out" / "report.csv").open())
    assert float(student["size MB"]) == pytest.approx((tmp_path / "weights.pt").stat().st_size / 1e6, abs=1e-3)
    assert float(student["size MB"]) < float(teacher["size MB"])


def test_the_command_measures_latency(experiment, tmp_path, monkeypatch):
    asked = []

    def measured(networks, batch_size):
        asked.append((set(networks), batch_size))
        return {name: Timing(0.002, 0.0005) for name in networks}

    monkeypatch.setattr("nni_blockswap.studies.report.measure", measured)
    assert main(["report", str(experiment), "--out", str(tmp_path / "out")]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "report.csv").open()))
    assert [float(row["latency ms"]) for row in rows] == pytest.approx([2.0] * 4)
    assert [float(row["latency std ms"]) for row in rows] == pytest.approx([0.5] * 4)
    ((networks, batch_size),) = asked
    assert batch_size == 1
    first = {}
    for row in csv.DictReader((tmp_path / "out" / "trials.csv").open()):
        first.setdefault((row["method"], row["variant"]), row["id"])
    assert networks >= set(first.values())


def test_the_command_takes_ids_and_folders(experiment, tmp_path, capsys, monkeypatch):
    home = tmp_path / "home"
    (home / "nni-experiments").mkdir(parents=True)
    known = {"abc": {"logDir": str(tmp_path / "logs")}}
    (home / "nni-experiments" / ".experiment").write_text(json.dumps(known))
    monkeypatch.setenv("HOME", str(home))
    trial(tmp_path / "logs" / "abc" / "t", GROUPED, 0.5, method="single", variant="G(4)")
    assert main(["report", str(experiment), "abc", "--out", str(tmp_path / "out"), "--latency-batch", "0"]) == 0
    assert "single" in capsys.readouterr().out
    assert main(["report", "nosuch", "--out", str(tmp_path / "out")]) == 2
    assert "there is no experiment 'nosuch'" in capsys.readouterr().err


def test_no_results_and_damaged_ones_are_named(tmp_path):
    with pytest.raises(StateError, match="no trial"):
        read_trials([tmp_path])
    trial(tmp_path / "a", MIXED, 0.9)
    (tmp_path / "a" / "result.json").write_text('{"box_AP": 0.1}')
    with pytest.raises(StateError, match="no result of a classification trial"):
        read_trials([tmp_path])


def test_latency_is_measured_in_rounds_and_leaves_no_network_out(monkeypatch):
    monkeypatch.setattr("nni_blockswap.studies.latency.SECONDS", 0.001)
    networks = {str(i): Architecture.from_choices(SPACE, ORIGINAL, ARGUMENTS).build() for i in range(2)}
    found = measure(networks, batch_size=2, device="cpu")
    assert found.keys() == networks.keys()
    assert all(one.mean > 0 and one.spread >= 0 for one in found.values())

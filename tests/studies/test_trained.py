"""Rank studies straight from trials: which count, with what errors, and the paper's coefficients beside."""

import csv
import json

import pytest

from nni_blockswap.cli import main
from nni_blockswap.errors import StateError
from nni_blockswap.studies.rank_study import Correlation, rank_study, read_trained
from nni_blockswap.studies.trained import Studied, data_of, study_experiment, table_1
from tests.studies.test_rank_study import NETWORKS, SETTINGS, SPACE
from tests.studies.test_report import trial

ERRORS = [5.0, 9.0, 30.0, 12.0]
DATA = {"data": "digits", "data_root": None, "data_options": {"image_size": 8}}


@pytest.fixture
def experiment(tmp_path):
    """Four random architectures at a budget, one of them trained twice; two at another; a single type."""
    folder = tmp_path / "experiment"

    def add(name, choices, error, **named):
        trial(folder / name, choices, 1 - error / 100, **named)
        (folder / name / "settings.json").write_text(json.dumps({**DATA, "seed": named["seed"]}))

    for number, (network, error) in enumerate(zip(NETWORKS, ERRORS, strict=True)):
        add(f"random{number}", network.split(), error, seed=0, method="random", variant="60K")
    add("again", NETWORKS[0].split(), 7.0, seed=1, method="random", variant="60K")
    for number in range(2):
        add(f"few{number}", NETWORKS[number].split(), 20.0, seed=0, method="random", variant="30K")
    add("single", ["G(4)"] * 3, 50.0, seed=0, method="single", variant="G(4)")
    return folder


def test_an_experiment_is_studied_as_a_file_of_its_random_architectures_would_be(experiment, tmp_path):
    study_experiment([experiment], {"batch_size": 8, "device": "cpu"}, ["l2_norm"], [1], tmp_path / "out")
    (tmp_path / "trained.csv").write_text(
        "choices,error\n" + "".join(f"{n},{e}\n" for n, e in zip(NETWORKS, [6.0, *ERRORS[1:]], strict=True))
    )
    trained = read_trained(tmp_path / "trained.csv", SPACE, SETTINGS.space_args)
    (expected,) = rank_study(trained, SETTINGS, ["l2_norm"], [1], tmp_path / "by hand")
    with (tmp_path / "out" / "table_1.csv").open() as stream:
        header, row = csv.reader(stream)
    assert header == ["proxy", "60K, 1 min."]  # 30K has two, which no rank correlation says anything about
    assert row == ["l2_norm", f"{expected.rho:+.3f}"]
    with (tmp_path / "out" / "60K" / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["choices"]: float(row["error"]) for row in rows} == pytest.approx(
        dict(zip(NETWORKS, [6.0, *ERRORS[1:]], strict=True))
    )


def test_the_papers_coefficients_stand_beside_those_at_the_same_share_of_the_original():
    def correlation(steps):
        return Correlation("fisher", steps, (), -0.5, 0.1, (-1, 0))

    found = table_1(
        [
            Studied("36%", 0.36, (correlation(1), correlation(7))),
            Studied("18%", 0.18, (correlation(1), correlation(7))),
            Studied("60%", 0.6, (correlation(1), correlation(7))),
        ]
    )
    assert found[1] == ["fisher", "-0.500 (-0.635)", "-0.500", "-0.500 (-0.685)", "-0.500", "-0.500", "-0.500"]


def test_the_trials_say_what_data_they_were_trained_on(experiment, tmp_path):
    assert data_of([experiment]) == DATA
    with pytest.raises(StateError, match="give --data"):
        data_of([tmp_path / "nothing"])


@pytest.mark.parametrize("content", ["null", "{", "[1]"])
def test_settings_of_a_trial_that_are_damaged_are_told(content, experiment):
    for path in experiment.rglob("settings.json"):
        path.write_text(content)
    with pytest.raises(StateError, match=r"settings\.json' is damaged .*; train that trial again"):
        data_of([experiment])


def test_where_no_trial_names_its_data_the_user_does(experiment, tmp_path):
    for path in experiment.rglob("settings.json"):
        path.write_text("{}")
    given = {"batch_size": 8, "device": "cpu"}
    with pytest.raises(StateError, match="no trial here says what data it was trained on; give --data"):
        study_experiment([experiment], given, ["l2_norm"], [1], tmp_path / "out")
    named = {**given, "data": DATA["data"], "data_options": DATA["data_options"]}
    assert "l2_norm" in study_experiment([experiment], named, ["l2_norm"], [1], tmp_path / "out")


def test_an_experiment_without_random_architectures_is_not_studied(tmp_path):
    trial(tmp_path / "a", ["G(4)"] * 3, 0.8, seed=0, method="single", variant="G(4)")
    with pytest.raises(StateError, match="needs 3 architectures of the method 'random'"):
        study_experiment([tmp_path], {}, ["fisher"], [1], tmp_path / "out")


def test_the_command_takes_an_experiment(experiment, tmp_path, capsys):
    out = str(tmp_path / "out")
    given = ["--batch-size", "8", "--device", "cpu", "--train-minibatches", "1", "2"]
    assert main(["rank-study", str(experiment), *given, "--out", out]) == 0
    printed = capsys.readouterr().out
    for proxy in ("fisher", "grad_norm", "l2_norm", "accuracy"):
        assert proxy in printed


def test_a_file_needs_space_and_data(tmp_path, capsys):
    (tmp_path / "trained.csv").write_text("choices,error\n")
    assert main(["rank-study", str(tmp_path / "trained.csv"), "--space", SPACE, "--out", str(tmp_path)]) == 2
    assert "give --data" in capsys.readouterr().err

"""Rank study: Spearman's coefficient against closed forms, its input file, and a study that was interrupted."""

import csv
import math

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from nni_blockswap.architecture import Architecture
from nni_blockswap.cli import main
from nni_blockswap.errors import ConfigError, DataError, SpaceError
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.studies.rank_study import (
    Trained,
    bootstrap_interval,
    correlate,
    rank_study,
    read_trained,
    scatter,
    table,
)
from search_spaces.wide_resnet import WideResNetSpace

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
ARGUMENTS = {"depth": 10, "width": 1, "in_channels": 1, "image_size": 8}
SETTINGS = ScoreSettings(
    space=SPACE, data="digits", space_args=ARGUMENTS, data_options={"image_size": 8}, batch_size=8, device="cpu"
)
NETWORKS = ["S S S", "G(2) S B(2)", "B(4) B(4) B(4)", "S G(4) S"]


def squared_norm(names):
    """Of all weights that the network of ``names`` runs, as seed 0 first draws them; picked by their names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        space = WideResNetSpace(**ARGUMENTS)
    used = tuple(f"stage{stage}.0.branch.{name}." for stage, name in enumerate(names, start=1))
    weights = [weight for name, weight in space.named_parameters() if ".branch." not in name or name.startswith(used)]
    return sum(float(weight.detach().double().square().sum()) for weight in weights)


def by_closed_form(scores, errors):
    """1 - 6 sum d^2 / (n (n^2 - 1)), for values without ties."""
    n = len(scores)
    ranks = [[sorted(values).index(value) for value in values] for values in (scores, errors)]
    return 1 - 6 * sum((a - b) ** 2 for a, b in zip(*ranks, strict=True)) / (n * (n * n - 1))


def test_coefficient_equals_the_closed_form_without_ties():
    rng = np.random.default_rng(3)
    scores, errors = rng.normal(size=(2, 40)).tolist()
    found = correlate("fisher", 1, scores, errors)
    assert found.rho == pytest.approx(by_closed_form(scores, errors), abs=1e-12)
    assert found.interval[0] < found.rho < found.interval[1]


@pytest.mark.parametrize("n", [3, 5, 8])
def test_p_value_of_a_perfect_ranking_is_its_share_of_the_permutations(n):
    # of the n! orders one gives +1 and one -1
    scores = np.arange(float(n))
    for errors in (scores, -scores):
        found = correlate("fisher", 1, scores.tolist(), errors.tolist())
        assert abs(found.rho) == pytest.approx(1)
        assert found.p_value == pytest.approx(2 / math.factorial(n), rel=1e-12)


def test_p_value_of_many_is_near_that_of_the_normal_limit():
    rng = np.random.default_rng(5)
    scores = rng.normal(size=60)
    found = correlate("fisher", 1, scores.tolist(), (scores + 8 * rng.normal(size=60)).tolist())
    expected = math.erfc(abs(found.rho) * math.sqrt(59 / 2))  # rho has variance 1 / (n - 1)
    assert found.p_value == pytest.approx(expected, abs=0.005)
    assert 0.01 < found.p_value < 0.9


def test_equal_errors_have_no_correlation():
    assert math.isnan(correlate("fisher", 1, [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]).rho)


def test_tied_values_share_their_mean_rank():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    found = correlate("fisher", 1, [1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    assert found.rho == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_scores_that_are_not_finite_rank_as_the_worst():
    found = correlate("fisher", 1, [3.0, math.nan, 2.0, math.inf], [1.0, 9.0, 2.0, 9.0])
    assert found.rho == pytest.approx(-1)
    assert found.non_finite == 2
    assert "2 non-finite" in table([found])


def test_equal_scores_have_no_correlation():
    found = correlate("accuracy", 1, [0.5, 0.5, 0.5], [1.0, 2.0, 3.0])
    assert math.isnan(found.rho)
    assert "undefined" in table([found])


def test_bootstrap_interval_of_a_monotone_relation_is_a_point():
    rising = np.arange(10.0)
    assert bootstrap_interval(rising, rising**3) == pytest.approx((1, 1))


def write(path, header, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def test_both_ways_to_write_an_architecture_mean_the_same(tmp_path):
    labels = ["block_00", "block_01", "block_02"]
    one = write(tmp_path / "a.csv", ["choices", "error"], [(text, 1) for text in NETWORKS])
    # columns in any order, other columns ignored
    other = write(tmp_path / "b.csv", ["error", *labels, "rank"], [(1, *text.split(), 7) for text in NETWORKS])
    assert read_trained(one, SPACE, ARGUMENTS) == read_trained(other, SPACE, ARGUMENTS)


def test_a_table_as_a_spreadsheet_writes_it_is_read(tmp_path):
    plain = write(tmp_path / "plain.csv", ["error", "choices"], [(one, text) for one, text in enumerate(NETWORKS)])
    marked = tmp_path / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())  # Excel's "CSV UTF-8"
    assert read_trained(marked, SPACE, ARGUMENTS) == read_trained(plain, SPACE, ARGUMENTS)


@pytest.mark.parametrize(
    ("header", "rows", "error", "match"),
    [
        (["choices"], [["S S S"]] * 3, DataError, "line 2 .* no column 'error'"),
        (["choices", "error"], [["S S S", 1]] * 2, DataError, "at least 3 architectures"),
        (["choices", "error"], [["S S S", 1], ["S S S", "n/a"], ["S S S", 1]], DataError, "line 3 .* 'n/a'"),
        (["choices", "error"], [["S S S", 1], ["S S S", "inf"], ["S S S", 1]], DataError, "line 3 .* finite"),
        (["choices", "error"], [["S S", 1]] * 3, SpaceError, "3 blocks; 2 choices"),
        (["block_00", "error"], [["S", 1]] * 3, SpaceError, "block_01, block_02 has no choice"),
    ],
)
def test_a_faulty_table_is_named_in_one_sentence(tmp_path, header, rows, error, match):
    with pytest.raises(error, match=match):
        read_trained(write(tmp_path / "t.csv", header, rows), SPACE, ARGUMENTS)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        read_trained(tmp_path / "nowhere.csv", SPACE, ARGUMENTS)


def test_an_interrupted_study_goes_on_and_gives_the_same(tmp_path):
    path = write(tmp_path / "t.csv", ["choices", "error"], [(text, i) for i, text in enumerate(NETWORKS)])
    trained = read_trained(path, SPACE, ARGUMENTS)
    proxies, steps = ["fisher", "l2_norm"], [1, 2]
    whole = rank_study(trained, SETTINGS, proxies, steps, tmp_path / "whole")

    def interrupt(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank_study(trained, SETTINGS, proxies, steps, tmp_path / "cut", interrupt)
    fresh = []
    resumed = rank_study(trained, SETTINGS, proxies, steps, tmp_path / "cut", lambda p: fresh.append(p.done))
    assert resumed == whole
    assert fresh == [3, 4, *[1, 2, 3, 4] * 3]
    names = {"correlations.md", "correlations.csv", "scores.csv", "scatter.png"}
    assert names < {path.name for path in (tmp_path / "cut").iterdir()}
    rows = list(csv.DictReader((tmp_path / "cut" / "correlations.csv").open()))
    assert [(row["proxy"], row["train_minibatches"]) for row in rows] == [
        ("fisher", "1"),
        ("l2_norm", "1"),
        ("fisher", "2"),
        ("l2_norm", "2"),
    ]
    assert float(rows[0]["spearman"]) == whole[0].rho


def test_every_proxy_is_measured_by_itself(tmp_path):
    path = write(tmp_path / "t.csv", ["choices", "error"], [(text, i) for i, text in enumerate(NETWORKS)])
    fisher, norm = rank_study(read_trained(path, SPACE, ARGUMENTS), SETTINGS, ["fisher", "l2_norm"], [1], tmp_path)
    expected = [squared_norm(text.split()) for text in NETWORKS]
    assert norm.scores == pytest.approx(expected, rel=1e-5)
    assert fisher.scores != norm.scores


RISING, FALLING = [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]


@pytest.fixture(scope="module")
def studied():
    return [
        correlate(proxy, steps, scores, RISING)
        for proxy, steps, scores in (
            ("fisher", 1, FALLING),
            ("l2_norm", 1, RISING),
            ("fisher", 10, RISING),
            ("l2_norm", 10, FALLING),
        )
    ]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_a_row_a_proxy_and_a_column_a_number_of_minibatches(studied):
    header, _, *rows = map(cells, table(studied).splitlines())
    assert header == ["proxy", "1 minibatch", "10 minibatches"]
    assert [[cell.partition(" ")[0] for cell in row] for row in rows] == [
        ["fisher", "-1.00", "+1.00"],
        ["l2_norm", "+1.00", "-1.00"],
    ]


def test_the_plot_has_a_panel_a_proxy_and_number_of_minibatches(studied):
    panels = scatter(RISING, studied).axes  # row by row
    assert [panel.get_title() for panel in panels] == [
        "fisher, 1 min.: -1.00",
        "fisher, 10 min.: +1.00",
        "l2_norm, 1 min.: +1.00",
        "l2_norm, 10 min.: -1.00",
    ]
    for panel, scores in zip(panels, (FALLING, RISING, RISING, FALLING), strict=True):
        (points,) = panel.collections
        assert points.get_offsets().tolist() == [list(pair) for pair in zip(scores, RISING, strict=True)]


def test_the_command_prints_the_table_and_writes_the_files(tmp_path, capsys):
    norms = [squared_norm(text.split()) for text in NETWORKS]
    path = write(
        tmp_path / "t.csv", ["choices", "error"], [(text, 1 / norm) for text, norm in zip(NETWORKS, norms, strict=True)]
    )
    command = ["rank-study", str(path), "--space", SPACE, "--data", "digits", "--data-option", "image_size=8"]
    command += [part for name, value in ARGUMENTS.items() for part in ("--space-arg", f"{name}={value}")]
    command += ["--batch-size", "8", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*command, "--proxies", "l2_norm", "fisher", "--train-minibatches", "1", "2"]) == 0
    shown, _, about = capsys.readouterr().out.partition("\n\n")
    header, _, norm, fisher = map(cells, shown.splitlines())
    assert header == ["proxy", "1 minibatch", "2 minibatches"]
    assert norm[:2] == ["l2_norm", "-1.00 (-1.00 to -1.00, p = 0.08)"]  # 2 of the 24 orders correlate so well
    assert fisher[0] == "fisher"
    assert "error of 4 architectures" in about
    assert shown in (tmp_path / "out" / "correlations.md").read_text()
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [row["choices"] for row in rows] == NETWORKS
    scores = {name: [float(row[name]) for row in rows] for name in rows[0] if name.endswith(("-1", "-2"))}
    assert list(scores) == ["l2_norm-1", "fisher-1", "l2_norm-2", "fisher-2"]
    assert scores["l2_norm-1"] == pytest.approx(norms, rel=1e-5)
    assert scores["l2_norm-2"] != scores["l2_norm-1"]
    assert imread(tmp_path / "out" / "scatter.png").std() > 0


def test_training_before_the_score_counts_from_one(tmp_path):
    path = write(tmp_path / "t.csv", ["choices", "error"], [("S S S", 1)] * 3)
    with pytest.raises(ConfigError, match="train_minibatches"):
        rank_study(read_trained(path, SPACE, ARGUMENTS), SETTINGS, ["fisher"], [0], tmp_path / "out")


def test_a_combination_is_made_of_scores_that_are_there_already(tmp_path):
    trained = [Trained(Architecture.from_choices(SPACE, names.split(), ARGUMENTS), error) for names, error in
               zip(NETWORKS, (1.0, 2.0, 4.0, 3.0), strict=True)]  # fmt: skip
    alone, costs, both = rank_study(trained, SETTINGS, ["l2_norm", "params", "l2_norm+params"], [1], tmp_path)
    places = [[sorted(one.scores).index(score) + 1 for score in one.scores] for one in (alone, costs)]
    assert both.scores == tuple(sum(two) / 4 for two in zip(*places, strict=True))
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["l2_norm-1", "params-1"]


@pytest.mark.parametrize(("proxies", "steps"), [([], [1]), (["fisher"], [])])
def test_a_study_of_nothing_is_refused(tmp_path, proxies, steps):
    with pytest.raises(ConfigError, match="at least one proxy, after at least one number of training minibatches"):
        rank_study([], SETTINGS, proxies, steps, tmp_path)

"""The figures of trained networks: what they are drawn from, against hand-made trials."""

import pytest

from nni_blockswap.cli import main
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.studies.figures import blocks, capability, draw, mixing, placements
from nni_blockswap.studies.trials import read_trials
from tests.studies.test_report import GROUPED, MIXED, trial

OTHERS = [["B(2)", "S", "G(4)"], ["S", "G(4)", "B(2)"], ["G(4)", "B(2)", "S"]]


@pytest.fixture
def mixed(tmp_path):
    """At 60K four random architectures, one block type at 10 and one at 30 %, of which only the first is as large."""
    for number, (choices, error) in enumerate(zip([MIXED, *OTHERS], [20, 22, 24, 40], strict=True)):
        named = {"method": "random", "variant": "60K", "params": 60_000}
        trial(tmp_path / f"random{number}", choices, 1 - error / 100, 0.95, seed=0, **named)
    for substitute, error, params in (("G(4)", 30, 62_000), ("B(2)", 10, 20_000)):
        named = {"method": "single", "variant": substitute, "params": params}
        trial(tmp_path / substitute, [substitute] * 3, 1 - error / 100, 0.95, seed=0, **named)
    return tmp_path


def test_mixing_draws_a_density_a_budget_and_the_single_types_of_its_size(mixed):
    (axes,) = mixing(read_trials([mixed])).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["4 random, mixed", "G(4) in every block"]
    rug, line = axes.lines
    assert sorted(rug.get_xdata()) == pytest.approx([20, 22, 24, 40])
    assert line.get_xdata()[0] == pytest.approx(30)
    (density,) = axes.collections
    outline = density.get_paths()[0].vertices
    peak = outline[outline[:, 1].argmax(), 0]
    assert 20 < peak < 24


def test_a_budget_whose_networks_are_all_alike_has_no_density(tmp_path):
    trial(tmp_path / "a", MIXED, 0.8, seed=0, method="random", variant="60K")
    (axes,) = mixing(read_trials([tmp_path])).axes
    assert not axes.collections


def test_capability_is_the_error_of_each_substitute_alone(mixed):
    found = capability(read_trials([mixed]))
    assert found["block_01"] == pytest.approx({"G(4)": 30, "B(2)": 10, "S": 5})


def test_placements_show_the_best_and_the_worst_with_the_rank_of_each_block(mixed):
    best, worst = placements(read_trials([mixed])).axes
    assert best.get_title() == "60K, best: 20.00 %, -0.7 standard deviations"
    # alone: G(4) 30 %, B(2) 10 %, S 5 %
    assert [bar.get_height() for bar in best.patches] == [1, 3, 2]  # G(4) S B(2)
    assert [bar.get_height() for bar in worst.patches] == [1, 2, 3]  # G(4) B(2) S


def test_a_substitute_that_was_not_trained_alone_has_no_bar(tmp_path):
    trial(tmp_path / "a", MIXED, 0.8, None, seed=0, method="random", variant="60K")
    best, _ = placements(read_trials([tmp_path])).axes
    assert [bar.get_height() for bar in best.patches] == [0, 0, 0]


def test_blocks_show_error_and_parameters_after_each_swap(tmp_path):
    swapped = [["G(4)", "S", "S"], ["S", "G(4)", "S"], ["S", "S", "G(4)"]]
    architectures = [
        trial(
            tmp_path / f"{block}-{seed}",
            swapped[block],
            1 - (10 + block + seed) / 100,
            0.94,
            seed=seed,
            method="one swap",
            variant=f"block_{block:02d} G(4)",
        )
        for block in range(3)
        for seed in range(2)
    ]
    upper, lower = blocks(read_trials([tmp_path])).axes
    assert [bar.get_height() for bar in upper.patches] == pytest.approx([10.5, 11.5, 12.5])
    assert [bar.get_height() for bar in lower.patches] == [one.params / 1e6 for one in architectures[::2]]
    (original,) = (line for line in upper.lines if line.get_linestyle() == "--")
    assert original.get_ydata()[0] == pytest.approx(6)


def test_trials_of_another_kind_cannot_be_drawn(tmp_path):
    trial(tmp_path / "a", GROUPED, 0.8, seed=0, method="single", variant="G(4)")
    with pytest.raises(StateError, match="trials by the method 'random', and none of these is one"):
        draw("mixing", [tmp_path], tmp_path)
    with pytest.raises(ConfigError, match="no figure 'pie'; choose from mixing, blocks, placements"):
        draw("pie", [tmp_path], tmp_path)


def test_the_command_writes_the_picture(mixed, capsys):
    assert main(["report", str(mixed), "--figure", "mixing", "--out", str(mixed / "out")]) == 0
    assert (mixed / "out" / "mixing.png").read_bytes().startswith(b"\x89PNG")

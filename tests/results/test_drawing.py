import numpy as np

from nni_blockswap.architecture import Architecture
from nni_blockswap.results.drawing import by_block, picture, preferences, shares, spent, text
from nni_blockswap.results.ranking import Ranking
from tests.conftest import SMALL, WRN


def architecture(*choices: str) -> Architecture:
    return Architecture.from_choices(WRN, choices, SMALL)


def test_bars_are_as_long_as_parameters_are_many() -> None:
    one = architecture("B(2)", "S", "G(2)")
    lines = text(one).splitlines()
    own, teachers = by_block(one, "params"), by_block(one.teacher(), "params")
    built = one.build()
    assert own == [sum(w.numel() for w in block.branch.parameters()) for block in built.blocks()]  # type: ignore[operator]
    for line, mine, whole in zip(lines, own, teachers, strict=False):
        assert line.count("█") == max(round(30 * mine / max(teachers)), 1)
        assert line.count("█") + line.count("░") == max(round(30 * whole / max(teachers)), 1)
        assert f"{mine:,} of {whole:,}" in line
    assert "░" not in lines[1]


def test_teacher_and_student_stand_side_by_side() -> None:
    one = architecture("B(2)", "S", "G(2)")
    for axes, resource in zip(picture(one).axes, ("params", "macs"), strict=True):
        teachers, own = ([bar.get_height() for bar in bars] for bars in axes.containers)
        assert own == by_block(one, resource)
        assert teachers == by_block(one.teacher(), resource)


def test_what_the_best_tenth_chose_more_often_than_the_rest() -> None:
    best = [architecture("S", "B(2)", "G(2)").scored(9.0, {}), architecture("S", "B(2)", "S").scored(8.0, {})]
    rest = [architecture("B(2)", "B(2)", "S").scored(float(-n), {}) for n in range(18)]
    ranking = Ranking.of("40%", [*rest, *best], higher_is_better=True)
    figure = preferences(ranking)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    cells = np.asarray(axes.images[0].get_array())
    assert names == ["B(2)", "G(2)", "S"]
    np.testing.assert_allclose(cells, [[-1, 0, 0], [0, 0, 0.5], [1, 0, -0.5]])
    np.testing.assert_allclose(shares(best, names).sum(axis=0), 1)


def test_what_is_spent_in_each_stage() -> None:
    ones = [architecture("S", "B(2)", "G(2)"), architecture("B(2)", "B(2)", "S")]
    built = [one.build() for one in ones]
    found = spent(ones, "params")
    assert [width for width, _ in found] == [16, 32, 64]
    for stage, (_, cost) in enumerate(found):
        branches = [network.blocks()[stage].branch for network in built]  # type: ignore[operator]
        assert cost == sum(w.numel() for branch in branches for w in branch.parameters()) / 2
    deep = Architecture.from_choices(WRN, ["S"] * 6, {**SMALL, "depth": 16})
    first = by_block(deep, "macs")
    assert [cost for _, cost in spent([deep], "macs")] == [sum(first[i : i + 2]) for i in (0, 2, 4)]

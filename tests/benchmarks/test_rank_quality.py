"""The study of networks trained here: what is drawn, and what counts as noise."""

from types import SimpleNamespace

import pytest

from benchmarks.rank_quality import REPEATED, SEEDS, SPACE, draw, noise, report
from nni_blockswap.architecture import complete_args
from nni_blockswap.studies.rank_study import Trained, correlate

ARGUMENTS = complete_args(SPACE, {"depth": 16, "width": 1})


def test_architectures_are_distinct_within_the_band_and_more_begin_with_the_same() -> None:
    few, more = draw(ARGUMENTS, "60K", 4), draw(ARGUMENTS, "60K", 9)
    assert more[:4] == few
    assert len({one.id for one in more}) == 9
    assert all(58_500 <= one.params <= 61_500 for one in more)


def test_noise_is_the_spread_between_seeds() -> None:
    trained = [Trained(one, 30.0 + 2 * index) for index, one in enumerate(draw(ARGUMENTS, "60K", REPEATED))]
    errors = {(one.architecture.id, seed): one.error + seed for one in trained for seed in range(SEEDS)}
    between, within = noise(trained, errors)
    assert between == pytest.approx(10**0.5)  # of 0, 2, 4, 6, 8
    assert within == pytest.approx(1)  # of 0, 1, 2
    given = SimpleNamespace(
        budget="60K", epochs=3, images=100, depth=16, width=1, image_size=32, architectures=5, name="narrow",
        precision="32-true", teacher=None,
    )  # fmt: skip
    found = correlate("fisher", 1, [5.0, 4.0, 3.0, 2.0, 1.0], [one.error for one in trained])
    text = report(given, trained, errors, {1: [found]})  # type: ignore[arg-type]
    assert "3.16 between architectures, 1.00 between 3 seeds of one; enough" in text
    assert "-1.00" in text
    assert "correlation of about 0.95 with" in text  # the root of 1 - 1 / 10
    assert (
        "--image-size 32 --images 100 --epochs 3 --precision 32-true --budget 60K --architectures 5 --name narrow`"
        in text
    )

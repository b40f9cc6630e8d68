"""The study of networks trained here: what is drawn, and what counts as noise."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import rank_quality
from benchmarks.rank_quality import REPEATED, SEEDS, SPACE, draw, noise, report, taught_by, train, train_all
from nni_blockswap.files import write_json
from nni_blockswap.spaces import complete_args
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


def test_networks_that_were_trained_before_a_kill_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, asked = draw(ARGUMENTS, "60K", REPEATED), list[list[str]]()

    def trained(words: list[str], **others: object) -> None:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(words)
        write_json(Path(words[words.index("--out") + 1]) / "result.json", {"accuracy": 0.5 + len(asked) / 100})

    monkeypatch.setattr(rank_quality.subprocess, "run", trained)
    given = SimpleNamespace(
        out=tmp_path, jobs=1, epochs=3, images=100, image_size=8, data_root="data", teacher=None, precision="32-true"
    )
    with pytest.raises(KeyboardInterrupt):
        train_all(chosen, given)  # type: ignore[arg-type]
    before = list(asked)
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        train_all(chosen, given)  # type: ignore[arg-type]
    assert len(before) == len(asked) == 4
    folders = [words[words.index("--out") + 1] for words in before + asked]
    assert len(set(folders)) == 8


def test_students_of_a_teacher_are_trained_by_its_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[list[str]]()

    def trained(words: list[str], **others: object) -> None:
        asked.append(words)
        write_json(Path(words[words.index("--out") + 1]) / "result.json", {"accuracy": 0.75})

    monkeypatch.setattr(rank_quality.subprocess, "run", trained)
    given = SimpleNamespace(
        out=tmp_path, epochs=3, images=100, image_size=8, data_root="data", teacher="weights.pt", precision="bf16-mixed"
    )
    (one,) = draw(ARGUMENTS, "60K", 1)
    assert train(one, 2, given) == 25  # type: ignore[arg-type]
    (words,) = asked
    assert words[words.index("--teacher") + 1] == "weights.pt"
    assert "--beta" not in words  # the recipe's own, which weighs attention transfer
    assert taught_by(one.teacher(), given) == Path("weights.pt")  # type: ignore[arg-type]

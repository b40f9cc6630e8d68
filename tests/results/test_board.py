"""A search in TensorBoard, and TensorBoard's threads on a full disk."""

import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nni_blockswap.results.board import EVERY, Board
from nni_blockswap.results.writers import quieten_writers


@pytest.mark.parametrize(("scale", "histograms"), [(1.0, 1), (1e21, 0), (-1e300, 0)])
def test_scores_beyond_all_bins_have_a_curve_and_no_histogram(scale: float, histograms: int, tmp_path: Path) -> None:
    with Board(tmp_path, higher_is_better=True) as board:
        for number in range(EVERY):
            board.add(scale * (1 + number))
    drawn = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in drawn.Scalars("search/best_score")] == [EVERY]
    assert len(drawn.Tags()["histograms"]) == histograms


@pytest.mark.parametrize(
    ("module", "error", "is_told"),
    [
        ("tensorboard.summary.writer.event_file_writer", OSError(28, "No space left on device"), False),
        ("tensorboard.summary.writer.event_file_writer", ValueError("no"), True),
        ("users.own", OSError(28, "No space left on device"), True),
    ],
)
def test_a_writers_full_disk_prints_no_traceback(
    module: str, error: Exception, is_told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Writer(threading.Thread):
        __module__ = module

        def run(self) -> None:
            raise error

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # as it was, after this
    quieten_writers()
    writer = Writer()
    writer.start()
    writer.join()
    assert ("Traceback" in capsys.readouterr().err) == is_told

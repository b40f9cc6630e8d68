"""TensorBoard's threads on a full disk."""

import threading

import pytest

from nni_blockswap.results.writers import quieten_writers


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

"""Progress on a terminal and elsewhere."""

from types import SimpleNamespace
from typing import Any

import pytest

from nni_blockswap.cli import terminal
from nni_blockswap.cli.search import SearchLine, candidates
from nni_blockswap.cli.terminal import Lines, spell_time


def progress(done: int) -> Any:
    return SimpleNamespace(done=done, total=300, rate=4.1, seconds_left=44.0, best=0.00123, engine="plain")


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(terminal, "OFTEN", 0.0)


def test_what_is_said_of_a_search() -> None:
    assert candidates(progress(120)) == "120/300 candidates, 4.1/s, 0:44 left, best 0.00123"
    assert [spell_time(seconds) for seconds in (float("inf"), 59.4, 59.7, 6 * 3600, -1)] == [
        "?", "0:59", "1:00", "6:00:00", "0:00",
    ]  # fmt: skip


def test_elsewhere_there_is_a_line_at_times_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchLine() as shown:
        for done in (1, 2, 3, 300):
            shown(progress(done))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["engine: plain", candidates(progress(1)), candidates(progress(300))]


def test_on_a_terminal_a_bar_grows_in_place_and_the_cursor_comes_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)

    def interrupted() -> None:
        with SearchLine() as shown:
            shown(progress(0))
            shown(progress(150))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    said = capsys.readouterr().err
    first, second = said.index("0/300"), said.index("150/300")
    assert said[first:second].count("\n") == 0
    assert said.index("\033[?25l") < first < second < said.rindex("\033[?25h")  # hidden, and shown again


def test_a_line_that_stays_is_above_those_that_change_and_is_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    long = "all of it: " + "x" * 200
    with Lines() as lines:
        lines.update("epoch 1 " + "y" * 200)
        lines.say(long)
        lines.update("[epoch 2]")
    said = capsys.readouterr().out
    assert said.index("epoch 1") < said.index(long) < said.index("[epoch 2]")
    assert "y" * 120 not in said


def test_off_a_terminal_lines_are_written_but_not_too_often(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines() as lines:
        for epoch in range(3):
            lines.update(f"epoch {epoch}", pause=10)
        lines.say("done")
        lines.update("more")
    assert capsys.readouterr().out.splitlines() == ["epoch 0", "done", "more"]

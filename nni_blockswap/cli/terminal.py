"""What commands show while they work, by rich; where there is no terminal, plain lines."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

OFTEN, SELDOM = 0.2, 10.0
"""Seconds between two looks at progress, on a terminal and elsewhere."""


class ProgressLine:
    """A bar on stderr; without a terminal a line every ten seconds. To be entered, so that the cursor comes back.

    Args:
        describe: what there is to say of progress, which has ``done`` and ``total``.
    """

    def __init__(self, describe: Callable[[Any], str]) -> None:
        self._describe, self._last = describe, float("-inf")
        self._terminal = sys.stderr.isatty()
        columns = BarColumn(), TextColumn("{task.description}", markup=False)
        self._bar = Progress(
            *columns,
            console=Console(stderr=True),
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),  # what is printed goes above the bar, but for what goes elsewhere
            disable=not self._terminal,
        )
        self._task = self._bar.add_task("")

    def __enter__(self) -> "ProgressLine":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Any) -> None:
        """Show it, unless that was done just now."""
        now, over = time.monotonic(), progress.done == progress.total
        if not over and now - self._last < (OFTEN if self._terminal else SELDOM):
            return
        self._last, text = now, self._describe(progress)
        self._bar.update(
            self._task, completed=progress.done, total=progress.total, description=text, refresh=self._terminal
        )
        if not self._terminal:
            self.say(text)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._terminal:
            self._bar.console.print(Text(text), soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


class Lines:
    """Lines on stdout that are kept up to date, below others that stay; without a terminal all are written."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._live = Live(console=Console(), auto_refresh=False)
        self._shown: Sequence[str] = ()
        self._last = float("-inf")

    def __enter__(self) -> "Lines":
        if self._terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def update(self, *lines: str, pause: float = 0.0) -> None:
        """Show how far it is; off a terminal at most once in ``pause`` seconds."""
        if lines == self._shown or (not self._terminal and time.monotonic() < self._last + pause):
            return
        self._shown, self._last = lines, time.monotonic()
        if self._terminal:
            self._live.update(Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)), refresh=True)
        else:
            print("\n".join(lines), flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._terminal:
            self.update()
            self._live.console.print(Text(text), soft_wrap=True)
        else:
            self._shown = ()
            print(text, flush=True)


def spell_time(seconds: float) -> str:
    """Such as ``0:44`` or ``1:00:44``; a question mark where nobody knows."""
    if seconds == float("inf"):
        return "?"
    hours, rest = divmod(round(max(seconds, 0.0)), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"

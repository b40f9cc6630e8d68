"""What ends a command from outside: Ctrl-C, SIGTERM, and a terminal that is gone."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handled(handler: Any) -> Iterator[None]:
    """Give these signals to ``handler``, but for those that are ignored, as by nohup or in a script's background.

    Signals are the main thread's: in another one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heeded = {number: known for number, known in before.items() if known is not signal.SIG_IGN}
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in heeded.items():
            signal.signal(number, known)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal as Ctrl-C."""
    raise KeyboardInterrupt

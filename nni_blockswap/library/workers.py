"""A library's blocks in several processes: this one teaches some of them, helpers beside it the others.

Blocks learn independently, so what a block's candidates learn does not depend on who else is taught, or where. On GPUs
there is a process a GPU, on a CPU one for each of PyTorch's threads. Each of these computes on one thread, and so does
a single one where there could be others: sums are rounded otherwise on several threads. What lives in this process
alone has all its threads.
"""

import logging
import os
import pickle
import queue
import subprocess
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import torch

from nni_blockswap.blocks.origin import is_live
from nni_blockswap.blocks.site import is_everywhere
from nni_blockswap.cost.table import Table
from nni_blockswap.errors import BlockSwapError, WorkerError
from nni_blockswap.library.school import OnProgress, Progress
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.processes import begin_helping, heard, say, spelled_end, start_helper, threads
from nni_blockswap.tasks import TASKS

_log = logging.getLogger(__name__)

_DONE = "done"
"""What a helper says last."""


@dataclass(frozen=True)
class Share:
    """What one process teaches.

    Attributes:
        labels: of the blocks, in forward order.
        device: where.
        name: of the folder of its curves, below that of all.
    """

    labels: tuple[str, ...]
    device: str
    name: str = ""


def shares(settings: LibrarySettings, device: torch.device, table: Table) -> list[Share]:
    """The blocks that are taught by process, so that each has about as many multiplications to do; this one's first.

    Args:
        settings: of the library.
        device: that ``settings`` mean.
    """
    work = {label: int(costs.sum()) for label, costs in zip(table.labels, table.column("macs").costs, strict=True)
            if settings.blocks is None or label in settings.blocks}  # fmt: skip
    places = _places(settings, device)[: len(work)]
    given: list[list[str]] = [[] for _ in places]
    for label in sorted(work, key=lambda label: -work[label]):
        min(given, key=lambda labels: (sum(work[one] for one in labels), len(labels))).append(label)
    return [
        Share(tuple(label for label in table.labels if label in labels), place, str(number) if number else "")
        for number, (labels, place) in enumerate(zip(given, places, strict=True))
    ]


def _places(settings: LibrarySettings, device: torch.device) -> list[str]:
    """A device for each process that may be."""
    if not _is_everywhere(settings):
        return [str(device)]
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())][: settings.processes]
    if device.type != "cpu":
        return [str(device)]
    return ["cpu"] * (settings.processes or torch.get_num_threads())


def threads_each(settings: LibrarySettings, device: torch.device) -> int:
    """How many threads each process computes on; those of one do not depend on how many processes there are."""
    return 1 if device.type == "cpu" and _is_everywhere(settings) else torch.get_num_threads()


def _is_everywhere(settings: LibrarySettings) -> bool:
    """Whether other processes know network, candidates and data, which may be a script's or a notebook's own."""
    extra = settings.space_args.get("extra") or ()
    own = is_live(settings.space, settings.space_args)
    return not own and TASKS.is_everywhere(settings.data) and all(is_everywhere(str(name)) for name in extra)


Teach = Callable[[Share, OnProgress], None]
"""Teaches a share, and tells how far it is."""


def teach(here: Teach, there: Teach, asked: Sequence[Share], count: int, on_progress: OnProgress) -> None:
    """Teach the first of the shares here, and each other one in a process of its own.

    Args:
        here: what teaches in this process.
        there: what teaches in another one; it can be pickled.
        asked: the shares.
        count: the threads of each process.
        on_progress: told how far all of them are together.

    Raises:
        BlockSwapError: what a helper raised.
        WorkerError: a helper died.
    """
    own, *others = asked
    with threads(count), closing(_Helpers(there, others, count)) as helpers:
        known: dict[int, Progress] = {}

        def tell(number: int, progress: Progress) -> None:
            known[number] = progress
            together = _together(known.values())
            if len(known) == len(asked) and together.total:  # all know how much they have to do, and it is something
                on_progress(together)

        def tell_own(progress: Progress) -> None:
            tell(0, progress)
            helpers.listen(tell, wait=False)

        here(own, tell_own)
        helpers.listen(tell, wait=True)


def _together(known: Collection[Progress]) -> Progress:
    return Progress(
        sum(one.done for one in known), sum(one.total for one in known), max(one.seconds_left for one in known)
    )


class _Helpers:
    """Processes that teach, and what they say."""

    def __init__(self, teach_share: Teach, asked: Sequence[Share], count: int) -> None:
        self._said: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._processes = {number: start_helper(__name__, count) for number in range(1, len(asked) + 1)}
        self._at_work = set(self._processes)
        for (number, process), share in zip(self._processes.items(), asked, strict=True):
            threading.Thread(target=self._run, args=(number, process, (teach_share, share)), daemon=True).start()

    def listen(self, tell: Callable[[int, Progress], None], *, wait: bool) -> None:
        """Pass on what has been said; with ``wait`` until all have done."""
        while self._at_work if wait else not self._said.empty():
            number, message = self._said.get()
            if isinstance(message, Progress):
                tell(number, message)
            elif isinstance(message, BlockSwapError):
                raise message
            elif message == _DONE:
                self._at_work.discard(number)
            else:
                raise WorkerError(
                    f"a process that taught blocks {spelled_end(self._processes[number])}; what they learned is kept: "
                    "start the same command again, with fewer processes or blocks at once if memory ran out."
                )

    def close(self) -> None:
        """End them, at work or not."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _run(self, number: int, process: "subprocess.Popen[bytes]", work: Any) -> None:
        """In a thread: give a helper its work, and pass on what it says; None when it says no more."""
        assert process.stdin is not None
        try:
            with suppress(OSError):  # it died, as is told below
                say(process.stdin, work)  # and leave it open: a helper ends where this ends
        except Exception as error:  # what it is to do cannot be pickled
            _log.warning("A process that was to teach blocks got no work: %r", error)
            process.kill()
        for message in heard(process):
            self._said.put((number, message))
            if message == _DONE:
                return
        self._said.put((number, None))


def serve(descriptor: int) -> None:
    """What a helper does; what it has to say goes to the file ``descriptor``."""
    requests, answers = begin_helping(descriptor)

    def tell(message: Any) -> None:
        try:
            say(answers, message)
        except BrokenPipeError:
            os._exit(0)  # nobody listens any more

    def end_with_input() -> None:
        os.read(requests.fileno(), 1)  # unbuffered: an interpreter that ends would wait for the buffer
        os._exit(0)

    teach_share, share = pickle.load(requests)
    threading.Thread(target=end_with_input, daemon=True).start()
    try:
        teach_share(share, tell)
    except BlockSwapError as error:
        tell(error)
    tell(_DONE)

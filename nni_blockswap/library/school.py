"""Teaches benches side by side: a step of all their candidates on each forward pass of the teacher."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.errors import is_out_of_memory
from nni_blockswap.library.bench import Bench
from nni_blockswap.library.lessons import Lessons
from nni_blockswap.library.measuring import Gauge
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.library.watching import watch
from nni_blockswap.results.writers import quieten_writers
from nni_blockswap.tasks import Batch, Task

_log = logging.getLogger(__name__)

SAVE_EVERY = 60.0
"""Seconds between two states on disk: what a kill can cost."""

FITTED = 4
"""Minibatches that last convolutions are fitted to."""

CURVE_EVERY = 10
"""Steps between two points of a curve."""


@dataclass(frozen=True)
class Progress:
    """How far a library is: steps of blocks done and wanted, and an estimate of the seconds left."""

    done: int
    total: int
    seconds_left: float


OnProgress = Callable[[Progress], None]


class School:
    """Teaches benches, group by group, and keeps track of it on disk.

    Args:
        teacher: whose blocks they learn from, on ``device``.
        task, lessons: the images.
        settings: of the library.
        device: where.
        board: folder of the curves.
        on_progress: is told at the beginning, and after each step.
    """

    def __init__(
        self,
        teacher: BlockSpace,
        task: Task,
        lessons: Lessons,
        settings: LibrarySettings,
        device: torch.device,
        board: Path,
        on_progress: OnProgress,
    ) -> None:
        self._teacher, self._task, self._lessons, self._device = teacher, task, lessons, device
        self._settings, self._board, self._on_progress = settings, board, on_progress

    def teach(self, benches: Sequence[Bench]) -> None:
        """All of ``benches`` that have not made their steps; fewer side by side where memory runs out."""
        for bench in benches:
            bench.tidy()
            bench.step = bench.steps_done
        waiting = [bench for bench in benches if bench.step < self._settings.steps]
        self._learners, self._begun, self._fresh = waiting, time.monotonic(), 0
        self._tell()
        size = self._settings.blocks_at_once or max(1, len(waiting))
        while waiting:
            group = waiting[:size]
            try:
                self._teach_group(group)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(group) == 1:
                    raise
                size = len(group) // 2
                _log.warning("Memory ran out with %d blocks side by side; going on with %d.", len(group), size)
            else:
                waiting = waiting[len(group) :]
            finally:
                for bench in group:
                    bench.close()

    def _tell(self) -> None:
        done, total = sum(bench.step for bench in self._learners), len(self._learners) * self._settings.steps
        pace = (time.monotonic() - self._begun) / self._fresh if self._fresh else math.inf
        self._on_progress(Progress(done, total, pace * (total - done) if total > done else 0.0))

    def _teach_group(self, group: Sequence[Bench]) -> None:
        for bench in group:
            bench.open()
        quieten_writers()
        with SummaryWriter(str(self._board)) as board:
            self._learn(group, board)

    def _learn(self, group: Sequence[Bench], board: SummaryWriter) -> None:
        new = [bench for bench in group if not bench.starts]
        self._begin([bench for bench in new if not bench.begin])
        for bench, gauge in zip(new, self._measure(new), strict=True):
            bench.mark(gauge.errors())
        saved = time.monotonic()
        while (step := min(bench.step for bench in group)) < self._settings.steps:
            self._step([bench for bench in group if bench.step == step], step, board)
            if time.monotonic() - saved > SAVE_EVERY:
                for bench in group:
                    bench.save()
                saved = time.monotonic()
        gauges = self._measure(group)
        for bench, gauge in zip(group, gauges, strict=True):
            bench.finish(gauge.errors())

    def _step(self, learners: Sequence[Bench], step: int, board: SummaryWriter) -> None:
        losses: dict[str, Any] = {}

        def learn(bench: Bench, entered: torch.Tensor, left: torch.Tensor) -> None:
            found = bench.learn(entered, left, self._arithmetic)
            losses.update({f"{bench.block.label}/{name}": loss for name, loss in found.items()})

        self._run(self._lessons.learned(step), {bench.block: partial(learn, bench) for bench in learners})
        if step % CURVE_EVERY == 0:
            for name, loss in losses.items():
                board.add_scalar(name, float(loss), step)
        self._fresh += len(learners)
        self._tell()

    def _begin(self, benches: Sequence[Bench]) -> None:
        """Let candidates take over what they can from the originals."""
        if benches:
            self._run(self._lessons.learned(0), {bench.block: bench.inherit for bench in benches}, exactly=True)
            for index in range(FITTED):
                looks = {bench.block: bench.gather for bench in benches}
                self._run(self._lessons.learned(index), looks, exactly=True)
        for bench in benches:
            bench.fit()

    def _measure(self, benches: Sequence[Bench]) -> list[Gauge]:
        gauges = [Gauge(bench.candidates) for bench in benches]
        for bench in benches:
            for candidate in bench.candidates.values():
                candidate.eval()
        if benches:
            looks = {bench.block: gauge for bench, gauge in zip(benches, gauges, strict=True)}
            for batch in self._lessons.measured():
                self._run(batch, looks, exactly=True)
        return gauges

    def _run(self, batch: Batch, looks: Any, *, exactly: bool = False) -> None:
        inputs, _ = self._task.to(batch, self._device)
        if isinstance(inputs, torch.Tensor):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, enabled=False) if exactly else self._arithmetic():
            watch(self._teacher, inputs, looks)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        found: AbstractContextManager[Any] = torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._settings.precision == "bf16"
        )
        return found

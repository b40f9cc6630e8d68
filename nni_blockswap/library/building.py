"""Builds a library: candidates of all blocks learn side by side on one forward pass of the teacher a step."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

import nni_blockswap
from nni_blockswap.architecture import complete_args, cost_table
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.errors import StateError
from nni_blockswap.files import locked
from nni_blockswap.library.bench import Bench
from nni_blockswap.library.lessons import Lessons
from nni_blockswap.library.library import Library, read_about, write_about
from nni_blockswap.library.measuring import Gauge
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.library.teacher import load_teacher
from nni_blockswap.library.watching import watch
from nni_blockswap.results.writers import quieten_writers
from nni_blockswap.scoring.machine import resolve_device
from nni_blockswap.scoring.scorer import check_fit
from nni_blockswap.tasks import Batch, Task, make_task

SAVE_EVERY = 60.0
"""Seconds between two states on disk: what a kill can cost."""

PATIENCE = 10.0
"""Seconds to wait for another process in the same folder: one that was killed takes a while to end."""

FITTED = 4
"""Minibatches that last convolutions are fitted to."""

STARTS = "originals' factors, last convolution fitted"
"""How candidates begin; a library that began otherwise is another one."""

CURVE_EVERY = 10
"""Steps between two points of a curve."""


@dataclass(frozen=True)
class Progress:
    """How far a library is: steps of blocks done and wanted, and an estimate of the seconds left."""

    done: int
    total: int
    seconds_left: float


def build(
    settings: LibrarySettings,
    out: str | Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Library:
    """Teach all candidates of all blocks, and keep what they learned in ``out``.

    A second call goes on where a killed one stopped: the same library comes out, bit for bit on a CPU. With more steps
    it teaches those on, from their weights, that still gain by it.

    Raises:
        BlockSwapError: settings that do not fit the space or the data; another library in ``out``, or somebody else who
            builds it.
    """
    folder, task = Path(out), make_task(settings.data, settings.data_root, **settings.data_options)
    example = task.minibatch(1, seed=0, augment=False)
    check_fit(settings.space, complete_args(settings.space, settings.space_args), task, example)
    taken = f"another process builds the library in '{folder}'; wait for its end, or choose another folder."
    with locked(folder, PATIENCE, taken):
        return _build(settings, folder, task, on_progress)


def _build(settings: LibrarySettings, folder: Path, task: Task, on_progress: Callable[[Progress], None]) -> Library:
    lessons = Lessons(task, settings.batch_size, settings.held_out, settings.seed)
    teacher, digest = load_teacher(settings.space, settings.space_args, settings.teacher)
    first = next(lessons.measured())
    _claim(folder, settings, digest, task.fingerprint(first))
    device = resolve_device(settings.device)
    teacher.to(device, memory_format=torch.channels_last)
    benches = [Bench(block, settings, folder, device) for block in teacher.blocks()]
    school = _School(teacher, task, lessons, settings, device, folder, on_progress)
    school.teach(benches)
    library = Library.load(folder)
    library.write_errors(cost_table(settings.space, settings.space_args))
    return library


def _claim(folder: Path, settings: LibrarySettings, teacher: str, data: str) -> None:
    """Write what the library is, unless it is there already. Raises StateError where another one is."""
    steps = {name: value for name, value in asdict(settings).items() if name not in ("blocks_at_once", "data_root")}
    named = {**steps, "space_args": complete_args(settings.space, settings.space_args)}
    identity = {
        **named,
        "data_options": dict(settings.data_options),
        "labels": list(cost_table(settings.space, settings.space_args).labels),
        "teacher_digest": teacher,
        "data_fingerprint": data,
        "starts": STARTS,
    }
    identity["versions"] = {"nni_blockswap": nni_blockswap.__version__, "torch": torch.__version__}
    before = read_about(folder)
    if before is not None:
        loose = ("steps", "teacher", "device", "versions")  # a teacher is known by its digest, not by its path
        changed = [f"{name} was {before.get(name)}, now {value}" for name, value in identity.items()
                   if name not in loose and before.get(name) != value]  # fmt: skip
        if changed:
            raise StateError(
                f"'{folder}' holds another library ({', '.join(changed)}); choose another folder for this one."
            )
        identity["steps"] = max(before["steps"], settings.steps)  # fewer than it has are nothing to do
    write_about(folder, identity)


class _School:
    """Teaches benches, group by group, and keeps track of it on disk."""

    def __init__(
        self,
        teacher: BlockSpace,
        task: Task,
        lessons: Lessons,
        settings: LibrarySettings,
        device: torch.device,
        folder: Path,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._teacher, self._task, self._lessons, self._device = teacher, task, lessons, device
        self._settings, self._folder, self._on_progress = settings, folder, on_progress

    def teach(self, benches: Sequence[Bench]) -> None:
        """All of ``benches`` that have not made their steps."""
        steps = self._settings.steps
        waiting = [bench for bench in benches if bench.steps_done < steps]
        for bench in benches:
            bench.tidy()
        self._total, self._done = len(waiting) * steps, sum(bench.steps_done for bench in waiting)
        self._begun, self._fresh = time.monotonic(), 0
        size = self._settings.blocks_at_once or max(1, len(waiting))
        for start in range(0, len(waiting), size):
            group = waiting[start : start + size]
            for bench in group:
                bench.open()
            self._done += sum(bench.step - bench.steps_done for bench in group)
            quieten_writers()
            with SummaryWriter(str(self._folder / "tensorboard")) as board:
                self._teach_group(group, board)
            for bench in group:
                bench.close()

    def _teach_group(self, group: Sequence[Bench], board: SummaryWriter) -> None:
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
        self._done, self._fresh = self._done + len(learners), self._fresh + len(learners)
        rate = self._fresh / (time.monotonic() - self._begun)
        self._on_progress(Progress(self._done, self._total, (self._total - self._done) / rate))

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

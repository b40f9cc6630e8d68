"""How every network is trained: Lightning's trainer, this project's checkpoints, resumption."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer, TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from nni_blockswap.errors import BlockSwapError, CheckpointError, ConfigError, DataError, first_line
from nni_blockswap.results.writers import quieten_writers
from nni_blockswap.tasks import Task
from nni_blockswap.tasks.loader import OwnBatches, is_sized
from nni_blockswap.training.checkpoints import BEST, LAST, AtomicCheckpoints, to_resume
from nni_blockswap.training.machine import Machine, training_device
from nni_blockswap.training.module import Training
from nni_blockswap.training.nni_link import is_first_process
from nni_blockswap.training.program import in_terminal, say
from nni_blockswap.training.recipe import Optimisation, Recipe

NONE_TO_JUDGE_ON = "the validation set gives no batch, and nothing can be judged; give it images."


@dataclass(frozen=True)
class Finished:
    """A finished training: its trainer, the best value of its metric, and seconds over all its parts."""

    trainer: pl.Trainer
    best: float
    seconds: float


class _Judged(Callback):
    """Stops where an epoch ended without validation, before anything of it is told or kept."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forget the figures of the epoch before."""
        pl_module.figures = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Raise DataError: Lightning validates after the batch that is the last by the loader's length."""
        if not pl_module.figures:
            raise DataError(
                f"train says that an epoch has {trainer.num_training_batches} batches and ended after "
                f"{trainer.fit_loop.batch_idx + 1}; let its len() be how many batches it gives, or leave it out."
            )


def make_trainer(
    out: Path,
    epochs: int,
    machine: Machine,
    *,
    clip: float | None = None,
    accumulate: int = 1,
    callbacks: Sequence[Callback] = (),
    board: bool = True,
) -> pl.Trainer:
    """Lightning's trainer, writing below ``out``; a GPU where there is one, else the CPU.

    Raises:
        ConfigError: the machine has no such devices or precision.
    """
    quieten_writers()
    logger = TensorBoardLogger(out, name="tensorboard", version="") if board else False
    try:
        return pl.Trainer(
            default_root_dir=out,
            max_epochs=epochs,
            accelerator="gpu" if training_device().type == "cuda" else "cpu",
            devices=machine.device_count,
            strategy="auto" if machine.device_count == 1 else "ddp",
            precision=machine.arithmetic,
            gradient_clip_val=clip,
            accumulate_grad_batches=accumulate,
            logger=logger,
            callbacks=list(callbacks),
            plugins=[AtomicCheckpoints()],
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            enable_progress_bar=in_terminal(),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_train_batches=machine.limit_steps,
            limit_val_batches=machine.limit_steps,
            log_every_n_steps=1_000_000,  # everything is logged once an epoch
        )
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(f"the machine cannot run this: {str(error).strip()}") from error


def share(batch_size: int, trainer: pl.Trainer) -> int:
    """Batch size of each process.

    Raises:
        ConfigError: the processes cannot share ``batch_size`` evenly.
    """
    if batch_size % trainer.world_size:
        raise ConfigError(f"--batch-size {batch_size} cannot be shared evenly by {trainer.world_size} processes.")
    return batch_size // trainer.world_size


def _callbacks(module: Training, out: Path) -> tuple[Timer, ModelCheckpoint, list[Callback]]:
    """The clock, the keeper of the best epoch, and all that a training needs."""
    mode = "max" if module.task.metric.higher_is_better else "min"
    best = ModelCheckpoint(
        out,
        filename=BEST.removesuffix(".ckpt"),
        monitor=module.monitor,
        mode=mode,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    last = ModelCheckpoint(  # Lightning's save_last would keep an epoch only where it is the best
        out, filename=LAST.removesuffix(".ckpt"), save_on_train_epoch_end=True, enable_version_counter=False
    )
    timer = Timer()
    needed: list[Callback] = [timer, best, last]
    if (patience := module.recipe.patience) is not None:
        needed.append(
            EarlyStopping(
                module.monitor,
                mode=mode,
                patience=patience,
                check_finite=False,  # a metric may be undefined at first; losses and weights are looked at elsewhere
                check_on_train_epoch_end=True,
            )
        )
    if in_terminal():
        needed.append(TQDMProgressBar())
    return timer, best, needed


def fit(
    module: Training,
    out: Path,
    machine: Machine,
    callbacks: Sequence[Callback] = (),
    *,
    run: str | None = None,
    epochs: int | None = None,
) -> Finished:
    """Train ``module`` by its recipe, going on from where an earlier process of the run in ``out`` stopped.

    Args:
        run: its name, which checkpoints have to have.
        epochs: after which to stop; the recipe's if None.

    Raises:
        DataError: the training set is smaller than a batch, or gives fewer batches than it says.
        StateError: a checkpoint in ``out`` is another run's.
        CheckpointError: none of those in ``out`` can be continued.
        TrainingError: the loss or the weights are no longer finite.
    """
    recipe, task = module.recipe, module.task
    module.run = run
    timer, best, needed = _callbacks(module, out)
    earlier = to_resume(out, say, run)
    trainer = make_trainer(
        out,
        earlier.epoch if earlier and earlier.stopped_for_good(recipe.epochs) else epochs or recipe.epochs,
        machine,
        clip=recipe.clip,
        accumulate=recipe.accumulate,
        callbacks=[_Judged(), *callbacks, *needed],
    )
    batch_size = recipe.batch_size // recipe.accumulate
    size = share(batch_size, trainer)
    check_batches(task, recipe)
    training: Any = task.train_loader(size, workers=machine.workers)
    if trainer.world_size > 1 and isinstance(training, OwnBatches):  # Lightning shares out a DataLoader's alone
        training = task.train_loader(batch_size, workers=machine.workers)
        training = training.shared(trainer.global_rank, trainer.world_size)
    validation = task.val_loader(size, workers=machine.workers)
    _check_some(validation, NONE_TO_JUDGE_ON)
    try:
        with _interruptible():
            trainer.fit(module, training, validation, ckpt_path=earlier.path if earlier else None, weights_only=True)
    except Exception as error:
        ours = isinstance(error, BlockSwapError | OSError | torch.OutOfMemoryError)
        if earlier is None or module.has_begun or ours:
            raise
        raise CheckpointError(
            f"training cannot go on from '{earlier.path}' ({type(error).__name__}, {first_line(error)}); delete it to "
            "go on from another checkpoint there, or to start anew."
        ) from error
    score = best.best_model_score  # None where a complete run's checkpoint does not say
    last = module.figures[module.monitor.removeprefix("val/")]
    return Finished(trainer, last if score is None else float(score), timer.time_elapsed("train"))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt: Lightning ends the program, and is deaf to the next one."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from None


def check_batches(task: Task, recipe: Optimisation) -> None:
    """Raise DataError where the training set is smaller than a batch, ConfigError where a warm-up has no length."""
    examples = getattr(task.train_loader(1), "dataset", None)  # a user's own batches may have none
    if examples is not None and len(examples) < recipe.batch_size:
        raise DataError(f"the training set has {len(examples)} images, less than one batch; lower --batch-size.")
    size = recipe.batch_size // recipe.accumulate
    batches = task.train_loader(size)
    _check_some(batches, f"the training set makes no whole batch of {size} images; lower --batch-size.")
    if isinstance(recipe, Recipe):
        recipe.check_sized(sized=is_sized(batches))


def _check_some(batches: Any, sentence: str) -> None:
    """Raise DataError where there is no batch; of what does not say how many there are a training shows it."""
    if is_sized(batches) and not len(batches):
        raise DataError(sentence)


def evaluate(module: Training, machine: Machine) -> float:
    """The task's metric on the validation set, on one device; in processes beside the first, 0."""
    if not is_first_process():
        return 0.0
    trainer = make_trainer(Path(), 1, replace(machine, devices="1"), board=False)
    loader = module.task.val_loader(module.recipe.batch_size, workers=machine.workers)
    _check_some(loader, NONE_TO_JUDGE_ON)
    with _interruptible():
        (metrics,) = trainer.validate(module, loader, verbose=False)
    return float(metrics[module.monitor])

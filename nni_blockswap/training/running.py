"""How every network is trained: Lightning's trainer, this project's checkpoints, resumption."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, Timer, TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from nni_blockswap.errors import ConfigError, DataError
from nni_blockswap.training.checkpoints import BEST, LAST, AtomicCheckpoints, to_resume
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.module import Training
from nni_blockswap.training.program import in_terminal, say


@dataclass(frozen=True)
class Run:
    """A finished training: its trainer, the best value of its metric, and seconds over all its parts."""

    trainer: pl.Trainer
    best: float
    seconds: float


def make_trainer(
    out: Path,
    epochs: int,
    machine: Machine,
    *,
    clip: float | None = None,
    callbacks: Sequence[Callback] = (),
    board: bool = True,
) -> pl.Trainer:
    """Lightning's trainer, writing below ``out``; a GPU where there is one, else the CPU.

    Raises:
        ConfigError: the machine has no such devices or precision.
    """
    logger = TensorBoardLogger(out, name="tensorboard", version="") if board else False
    try:
        return pl.Trainer(
            default_root_dir=out,
            max_epochs=epochs,
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=machine.device_count,
            strategy="auto" if machine.device_count == 1 else "ddp",
            precision=machine.arithmetic,
            gradient_clip_val=clip,
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


def fit(
    module: Training, out: Path, machine: Machine, callbacks: Sequence[Callback] = (), *, epochs: int | None = None
) -> Run:
    """Train ``module`` by its recipe, going on from where an earlier run in ``out`` stopped.

    Args:
        epochs: after which to stop; the recipe's if None.

    Raises:
        DataError: the training set is smaller than a batch.
    """
    recipe, task = module.recipe, module.task
    best = ModelCheckpoint(
        out,
        filename=BEST.removesuffix(".ckpt"),
        monitor=module.monitor,
        mode="max" if task.metric.higher_is_better else "min",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    last = ModelCheckpoint(  # Lightning's save_last would keep an epoch only where it is the best
        out, filename=LAST.removesuffix(".ckpt"), save_on_train_epoch_end=True, enable_version_counter=False
    )
    timer = Timer()
    watching = [*callbacks, timer, best, last, *_bar()]
    trainer = make_trainer(out, epochs or recipe.epochs, machine, clip=recipe.clip, callbacks=watching)
    checkpoint = to_resume(out, say)
    size = share(recipe.batch_size, trainer)
    training = task.train_loader(size, workers=machine.workers)
    validation = task.val_loader(size, workers=machine.workers)
    examples: Any = training.dataset
    if len(examples) < recipe.batch_size:
        raise DataError(f"the training set has {len(examples)} images, less than one batch; lower --batch-size.")
    trainer.fit(module, training, validation, ckpt_path=checkpoint, weights_only=True)
    return Run(trainer, float(best.best_model_score or 0.0), timer.time_elapsed("train"))


def _bar() -> list[Callback]:
    return [TQDMProgressBar()] if in_terminal() else []

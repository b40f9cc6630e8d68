"""How every trial runs: Lightning's trainer, this project's checkpoints, resumption, one sentence for each failure."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, Timer, TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch import distributed
from torch.utils.data import DataLoader

from nni_blockswap.errors import BlockSwapError, ConfigError, DataError
from nni_blockswap.training.checkpoints import BEST, LAST, AtomicCheckpoints, to_resume
from nni_blockswap.training.nni_link import is_first_process, under_nni
from nni_blockswap.training.options import Machine


def say(text: str) -> None:
    """A line for whoever watches: the terminal, or the trial's log under NNI."""
    if is_first_process():
        print(text, flush=True)


def in_terminal() -> bool:
    """Whether a progress bar has a place to move."""
    return not under_nni() and sys.stderr.isatty()


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
    devices: Any = machine.devices if machine.devices == "auto" else _count(machine.devices)
    logger = TensorBoardLogger(out, name="tensorboard", version="") if board else False
    try:
        return pl.Trainer(
            default_root_dir=out,
            max_epochs=epochs,
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=devices,
            strategy="auto" if devices == 1 else "ddp",
            precision=_precision(machine.precision),
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


def _count(devices: str) -> int:
    if not devices.isdecimal() or int(devices) < 1:
        raise ConfigError(f"--devices is a number of devices or 'auto', not '{devices}'.")
    return int(devices)


def _precision(name: str) -> Any:
    if name != "auto":
        return name
    capable = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if capable else "32-true"


def share(batch_size: int, trainer: pl.Trainer) -> int:
    """Batch size of each process.

    Raises:
        ConfigError: the processes cannot share ``batch_size`` evenly.
    """
    if batch_size % trainer.world_size:
        raise ConfigError(f"--batch-size {batch_size} cannot be shared evenly by {trainer.world_size} processes.")
    return batch_size // trainer.world_size


def fit(
    module: pl.LightningModule,
    loaders: Callable[[int], tuple["DataLoader[Any]", "DataLoader[Any]"]],
    out: Path,
    *,
    epochs: int,
    batch_size: int,
    machine: Machine,
    monitor: str,
    clip: float | None = None,
    callbacks: Sequence[Callback] = (),
) -> "Run":
    """Train ``module`` for ``epochs``, going on from where an earlier run in ``out`` stopped.

    Args:
        loaders: from the batch size of one process to its loaders of training and validation batches.
        batch_size: over all processes.
        monitor: the logged metric, higher is better, that decides what the best epoch is.

    Raises:
        DataError: the training set is smaller than a batch.
    """
    best = ModelCheckpoint(
        out,
        filename=BEST.removesuffix(".ckpt"),
        monitor=monitor,
        mode="max",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    last = ModelCheckpoint(  # Lightning's save_last would keep an epoch only where it is the best
        out, filename=LAST.removesuffix(".ckpt"), save_on_train_epoch_end=True, enable_version_counter=False
    )
    timer = Timer()
    trainer = make_trainer(out, epochs, machine, clip=clip, callbacks=[*callbacks, timer, best, last, *_bar()])
    checkpoint = to_resume(out, say)
    training, validation = loaders(share(batch_size, trainer))
    examples: Any = training.dataset
    if len(examples) < batch_size:
        raise DataError(f"the training set has {len(examples)} images, less than one batch; lower --batch-size.")
    trainer.fit(module, training, validation, ckpt_path=checkpoint, weights_only=True)
    return Run(trainer, float(best.best_model_score or 0.0), timer.time_elapsed("train"))


class Run:
    """A finished training run: its trainer, best value of the monitored metric, and seconds over all its parts."""

    def __init__(self, trainer: pl.Trainer, best: float, seconds: float) -> None:
        self.trainer = trainer
        self.best = best
        self.seconds = seconds


def _bar() -> list[Callback]:
    return [TQDMProgressBar()] if in_terminal() else []


def quiet() -> None:
    """Silence what is harmless and says nothing to the reader of a trial's log."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for harmless in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=harmless)


def main(name: str, run: Callable[[], None]) -> None:
    """Run a trial; end with one sentence on stderr and a non-zero exit code where it fails.

    Of several processes the first speaks; another one does so only of what it alone may have met.
    """
    quiet()
    try:
        run()
    except (BlockSwapError, RuntimeError, OSError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        met_alone = isinstance(error, DataError | torch.OutOfMemoryError | OSError)
        sys.exit(f"{name}: {sentence}" if is_first_process() or met_alone else 1)


def _sentence(error: Exception) -> str | None:
    """What to tell the user of ``error``; None where it is a fault of the program."""
    text = str(error).strip()
    if isinstance(error, BlockSwapError):
        # A process that reads images passes on its whole traceback; the last line is the sentence.
        return text.splitlines()[-1].rpartition("Error: ")[2]
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is too small; lower --batch-size ({text.partition('.')[0]})."
    if isinstance(error, OSError):
        return f"{text}; what was written before is kept: the same command goes on after the last whole epoch."
    if isinstance(error, distributed.DistError) or "gloo" in text:  # what gloo says of a lost peer has no type
        return "another process of this run has failed; what it said tells why."
    return None

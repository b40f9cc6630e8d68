"""What a run shows while it trains: a line and a report to NNI each epoch, and pictures in TensorBoard."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.capture import captured
from nni_blockswap.blocks.points import undisturbed
from nni_blockswap.training.attention import attention_map
from nni_blockswap.training.classification import ImageTraining, Teacher
from nni_blockswap.training.program import say

IMAGES, PICTURES = 4, 10
"""Images in a picture of attention, and about how many pictures a run draws."""

PARTS = ("train/attention/", "train/features/")
"""Too many for a line."""


class EpochReport(Callback):
    """Passes on the metrics of each epoch, as numbers by name.

    Args:
        report: takes the epoch, counted from 0, and its metrics; ``default`` among them is ``monitor``. None where
            nobody but the person who watches is told.
        monitor: what NNI optimises.
    """

    def __init__(self, report: Callable[[int, Mapping[str, float]], None] | None, monitor: str) -> None:
        self._report = report
        self._monitor = monitor

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report from the first process alone."""
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        shown = [f"{name} {value:.4g}" for name, value in metrics.items() if not name.startswith(PARTS)]
        _tell(trainer, f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {', '.join(shown)}")
        if self._report is not None:
            named = {name.replace("/", "_"): value for name, value in metrics.items()}
            self._report(trainer.current_epoch, {"default": metrics[self._monitor], **named})


class History(Callback):
    """Keeps the metrics of all epochs, in the checkpoints, too."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note those of an epoch."""
        self.epochs.append({name: float(value) for name, value in sorted(trainer.callback_metrics.items())})

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.epochs = list(state_dict["epochs"])


class Description(Callback):
    """Puts the architecture with its costs, and how good its teacher is, into TensorBoard."""

    def __init__(self, architecture: Architecture, teacher: Teacher | None) -> None:
        self._architecture = architecture
        self._teacher = teacher

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both, once."""
        module: Any = pl_module
        board = _board(module)
        if board is None or not trainer.is_global_zero:
            return
        architecture = self._architecture
        rows = [f"| {label} | {name} |" for label, name in architecture.choices.items()]
        table = "\n".join(["| block | substitute |", "|---|---|", *rows])
        board.add_text(
            "architecture", f"**{architecture.id}**: {architecture.space}, {architecture.spelled_costs}\n\n{table}"
        )
        if self._teacher is not None:
            board.add_scalar(f"val/teacher_{module.task.metric.key}", self._teacher.figure, 0)


class AttentionPictures(Callback):
    """Draws where teacher and student look on a few validation images.

    A row is an image: the image itself, then teacher and student side by side at each attention point that gives maps.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw about ten times a run, the last epoch among them."""
        last = (trainer.max_epochs or 1) - 1
        due = trainer.current_epoch in {round(i * last / (PICTURES - 1)) for i in range(PICTURES)}
        if due and trainer.is_global_zero and isinstance(pl_module, ImageTraining):
            board = _board(pl_module)
            if board is not None and pl_module.teacher is not None and pl_module.teacher.points:
                board.add_image("attention: image, then teacher | student", _attention(pl_module), trainer.global_step)
            if board is not None:
                board.flush()


@torch.no_grad()
def _attention(module: ImageTraining) -> Tensor:
    """A picture (3, H, W) in [0, 1]."""
    from torchvision.utils import make_grid

    teacher = module.teacher
    assert teacher is not None
    loader: Any = module.trainer.val_dataloaders
    images, labels = module.task.to(next(iter(loader)), module.device)
    batch = (images[:IMAGES], labels[:IMAGES])
    images, _ = module.task.prepare(batch, train=False)
    with undisturbed(module.network), captured(module.network, teacher.points) as student:
        module.network(images)
    columns = [_stretched(images.float().mean(1, keepdim=True))]
    for of_student, of_teacher in zip(student.values(), teacher.answer(images)[1].values(), strict=True):
        if of_student.dim() == of_teacher.dim() == 4:  # features are matched where there are no maps, too
            columns += [_heat(of_teacher, images), _heat(of_student, images)]
    cells = torch.stack(columns, 1).flatten(0, 1).cpu()  # (images * columns, 1, H, W)
    picture: Tensor = make_grid(cells, nrow=len(columns), pad_value=1.0)
    return picture


def _heat(activation: Tensor, images: Tensor) -> Tensor:
    """Attention map at the size of the images: (N, 1, H, W) in [0, 1]."""
    maps = attention_map(activation).view(len(activation), 1, *activation.shape[2:])
    return _stretched(F.interpolate(maps, size=images.shape[2:], mode="nearest"))


def _stretched(grey: Tensor) -> Tensor:
    """(N, 1, H, W), each image from 0 to 1."""
    low, high = grey.amin((1, 2, 3), keepdim=True), grey.amax((1, 2, 3), keepdim=True)
    return (grey - low) / (high - low).clamp_min(1e-12)


def _tell(trainer: Trainer, text: str) -> None:
    """A line that stays, above the progress bar where there is one."""
    bar = trainer.progress_bar_callback
    if bar is None:
        say(text)
    else:
        bar.print(text)


def _board(module: Any) -> Any:
    """TensorBoard's SummaryWriter, or None where the run writes none."""
    return module.logger.experiment if module.logger is not None else None

"""Training of an image classifier: cross-entropy, for a student with attention transfer from a frozen teacher."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap.blocks.capture import captured
from nni_blockswap.errors import ConfigError
from nni_blockswap.tasks import Task
from nni_blockswap.training.attention import attention_distances
from nni_blockswap.training.condensation import Condensation, learned
from nni_blockswap.training.module import Training
from nni_blockswap.training.recipe import Recipe


class Teacher:
    """A network that only answers: evaluation mode, no gradients, weights and BN statistics never touched.

    Not an ``nn.Module`` on purpose: it is no part of a student's checkpoint, of DDP's buckets or of ``train()``.

    Args:
        network: the trained network.
        points: its attention points, by module path.
        figure: on the validation set, by the task's metric.
    """

    def __init__(self, network: nn.Module, points: Sequence[str], figure: float) -> None:
        self.network = channels_last(network.eval().requires_grad_(False))
        self.points = tuple(points)
        self.figure = figure

    @torch.no_grad()
    def activations(self, images: Tensor) -> list[Tensor]:
        """Activations (N, C, H, W) at the attention points."""
        with captured(self.network, self.points) as activations:
            self.network(images)
        return list(activations.values())


class ImageTraining(Training):
    """Training of an image classifier, with attention transfer where there is a ``teacher``.

    Its figures are ``accuracy`` and, from ten classes on, ``top5``.

    Args:
        network: what is trained; (N, C, H, W) -> logits (N, classes).
        task: a classification task: its batches are (images, labels).
        recipe: optimiser, schedule, weight of attention transfer.
        teacher: whose attention is transferred, at the same points of ``network``.
    """

    recipe: Recipe

    def __init__(self, network: nn.Module, task: Task, recipe: Recipe, teacher: Teacher | None = None) -> None:
        super().__init__(channels_last(network), task, recipe)
        self.teacher = teacher

    @property
    def remedy(self) -> str:
        """What a person may do when the loss is no longer finite."""
        return f"; lower --lr ({self.recipe.lr:g}) or --beta ({self.recipe.beta:g}), or set --clip"

    def configure_callbacks(self) -> list[Callback]:
        """What the network itself asks for: learned groups condense while they are trained."""
        return [Condensation()] if learned(self.network) else []

    def on_fit_start(self) -> None:
        """Put the teacher where the student is."""
        if self.teacher is not None:
            self.teacher.network.to(self.device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Images normalised and augmented, with channels last."""
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        return images.contiguous(memory_format=torch.channels_last), labels

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch: equation (1)."""
        images, labels = batch
        points = self.teacher.points if self.teacher else ()
        with captured(self.network, points) as activations:
            logits = self.network(images).float()
        loss = cross_entropy = F.cross_entropy(logits, labels)
        shown = {"cross_entropy": cross_entropy, "accuracy": (logits.argmax(1) == labels).float().mean()}
        if self.teacher is not None:
            distances = attention_distances(
                list(activations.values()), self.teacher.activations(images), self.recipe.attention
            )
            loss = cross_entropy + self.recipe.beta * distances.sum()
            shown |= {f"attention/{point}": one for point, one in zip(points, distances.unbind(), strict=True)}
        self.watch({"loss": loss, **shown})
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss, top-1 accuracy and, from ten classes on, top-5 accuracy of one batch."""
        images, labels = batch
        logits = self.network(images).float()
        ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (N, 5)
        shown = {"val/loss": F.cross_entropy(logits, labels), "val/accuracy": ranked[:, 0].float().mean()}
        if self.task.num_classes >= 10:
            shown["val/top5"] = ranked.any(1).float().mean()
        self.log_dict(shown, batch_size=len(labels), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Remember the figures."""
        metrics = self.trainer.callback_metrics
        if self.trainer.training:
            self.stop_unless_finite(metrics["val/loss"])
        self.figures = {
            name: float(metrics[f"val/{name}"]) for name in ("accuracy", "top5") if f"val/{name}" in metrics
        }


def channels_last(network: nn.Module) -> nn.Module:
    """The same network, its 4-D weights laid out with channels last: what convolutions like best on CPU and GPU."""
    found: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    return found


def check_attention(network: Any) -> None:
    """Raise ConfigError or SpaceError unless ``network`` has the points that its space transfers attention at."""
    if not network.attention_points:
        raise ConfigError(
            "attention is transferred at the space's attention_points, and it names none; name some, or use --beta 0."
        )
    with captured(network, network.attention_points):
        pass

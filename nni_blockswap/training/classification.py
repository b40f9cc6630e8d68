"""One training step for all: cross-entropy, for a student with attention transfer from a frozen teacher."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError, TrainingError
from nni_blockswap.scoring import scorer as scoring
from nni_blockswap.tasks import Task
from nni_blockswap.training.attention import attention_distances, captured
from nni_blockswap.training.options import Recipe

CHECK_EVERY = 50
"""Steps between two looks at the loss; each look waits for the device."""


class Teacher:
    """A network that only answers: evaluation mode, no gradients, weights and BN statistics never touched.

    Not an ``nn.Module`` on purpose: it is no part of a student's checkpoint, of DDP's buckets or of ``train()``.

    Args:
        network: the trained network.
        points: its attention points, by module path.
        accuracy: on the validation set, in [0, 1].
    """

    def __init__(self, network: nn.Module, points: Sequence[str], accuracy: float) -> None:
        self.network = channels_last(network.eval().requires_grad_(False))
        self.points = tuple(points)
        self.accuracy = accuracy

    @torch.no_grad()
    def activations(self, images: Tensor) -> list[Tensor]:
        """Activations (N, C, H, W) at the attention points."""
        with captured(self.network, self.points) as activations:
            self.network(images)
        return list(activations.values())


class ImageTraining(LightningModule):
    """Training of an image classifier, with attention transfer where there is a ``teacher``.

    Args:
        network: what is trained; (N, C, H, W) -> logits (N, classes).
        task: a classification task: its batches are (images, labels).
        recipe: optimiser, schedule, weight of attention transfer.
        teacher: whose attention is transferred, at the same points of ``network``.
    """

    def __init__(self, network: nn.Module, task: Task, recipe: Recipe, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.network = channels_last(network)
        self.task = task
        self.recipe = recipe
        self.teacher = teacher
        self.figures: dict[str, float] = {}
        """On the validation set after the last epoch: ``accuracy`` and, from ten classes on, ``top5``."""
        self._sums = torch.zeros(len(self._shown))
        self._draws: torch.Generator | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD; the learning rate is set at the start of each epoch."""
        recipe = self.recipe
        return torch.optim.SGD(
            self.network.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def on_fit_start(self) -> None:
        """Put the teacher where the student is."""
        if self.teacher is not None:
            self.teacher.network.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Set learning rate, order and augmentation from the epoch alone, so that a resumed run repeats no draw."""
        self._draws = seed_epoch(self.trainer, self.recipe.seed, self.device)
        self._sums = torch.zeros(len(self._shown), device=self.device)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.recipe.learning_rate(self.current_epoch)
        self.log("learning_rate", self.recipe.learning_rate(self.current_epoch), sync_dist=True)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise and augment the whole batch on its device."""
        training = bool(self.trainer.training)
        images, labels = self.task.prepare(batch, train=training, generator=self._draws if training else None)
        return images.contiguous(memory_format=torch.channels_last), labels

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch: equation (1)."""
        images, labels = batch
        points = self.teacher.points if self.teacher else ()
        with captured(self.network, points) as activations:
            logits = self.network(images).float()
        loss = cross_entropy = F.cross_entropy(logits, labels)
        shown = [cross_entropy, (logits.argmax(1) == labels).float().mean()]
        if self.teacher is not None:
            distances = attention_distances(
                list(activations.values()), self.teacher.activations(images), self.recipe.attention
            )
            loss = cross_entropy + self.recipe.beta * distances.sum()
            shown += distances.unbind()
        self._sums += torch.stack([loss, *shown]).detach()  # on the device: Lightning's log of each would cost more
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop a diverged run before it replaces a good checkpoint; log the epoch's means."""
        last = self.trainer.is_last_batch
        if last or (batch_idx + 1) % CHECK_EVERY == 0:
            total: Any = self.trainer.strategy.reduce(self._sums.clone(), reduce_op="sum")  # one process tells all
            self._stop_unless_finite(total.sum())
        if last:
            means = (self._sums / (batch_idx + 1)).unbind()
            named = {f"train/{name}": mean for name, mean in zip(self._shown, means, strict=True)}
            self.log_dict(named, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    @property
    def _shown(self) -> list[str]:
        """Names of the figures whose means over an epoch are logged."""
        points = self.teacher.points if self.teacher else ()
        return ["loss", "cross_entropy", "accuracy", *(f"attention/{point}" for point in points)]

    def _stop_unless_finite(self, loss: Any) -> None:
        if not bool(torch.isfinite(torch.as_tensor(loss))):
            raise TrainingError(
                f"the loss is no longer finite in epoch {self.current_epoch + 1}; lower --lr ({self.recipe.lr:g}) or "
                f"--beta ({self.recipe.beta:g}), or set --clip: the checkpoints of earlier epochs are kept."
            )

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
            self._stop_unless_finite(metrics["val/loss"])
        self.figures = {
            name: float(metrics[f"val/{name}"]) for name in ("accuracy", "top5") if f"val/{name}" in metrics
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the figures with the weights that they belong to."""
        checkpoint["figures"] = self.figures

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back, for a run that was complete already."""
        self.figures = checkpoint["figures"]


def seed_epoch(trainer: Trainer, seed: int, device: torch.device) -> torch.Generator:
    """At the start of an epoch, set the order of its examples and all its draws from ``seed`` and the epoch alone.

    Returns:
        A generator for what this process draws on ``device``.
    """
    of_epoch = seed * 1_000_003 + trainer.current_epoch
    own = of_epoch * trainer.world_size + trainer.global_rank
    loader: Any = trainer.train_dataloader
    if isinstance(loader.sampler, RandomSampler):
        loader.sampler.generator = torch.Generator().manual_seed(of_epoch)
    elif isinstance(loader.sampler, DistributedSampler):  # one order for all processes; Lightning adds the epoch
        loader.sampler.seed = seed * 1_000_003
    loader.generator = torch.Generator().manual_seed(own)  # the reading processes take their seeds from it
    torch.manual_seed(own)
    return torch.Generator(device).manual_seed(own)


def channels_last(network: nn.Module) -> nn.Module:
    """The same network, its 4-D weights laid out with channels last: what convolutions like best on CPU and GPU."""
    found: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    return found


def loaders(task: Task, workers: int) -> Callable[[int], tuple["DataLoader[Any]", "DataLoader[Any]"]]:
    """From the batch size of one process to its loaders of training and validation batches."""
    return lambda size: (task.train_loader(size, workers=workers), task.val_loader(size, workers=workers))


def check_attention(network: Any) -> None:
    """Raise ConfigError or SpaceError unless ``network`` has the points that its space transfers attention at."""
    if not network.attention_points:
        raise ConfigError(
            "attention is transferred at the space's attention_points, and it names none; name some, or use --beta 0."
        )
    with captured(network, network.attention_points):
        pass


def check_fit(architecture: Architecture, task: Task) -> None:
    """Raise ConfigError unless the architecture is one for the task, its images and its classes."""
    batch = task.minibatch(1, seed=0, augment=False)
    scoring.check_fit(architecture.space, architecture.space_args, task, batch)

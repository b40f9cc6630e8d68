"""Training of Mask R-CNN: its losses, summed; COCO's average precision after each epoch."""

from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, distributed, nn

from nni_blockswap.errors import ConfigError, TrainingError
from nni_blockswap.tasks.coco import Coco
from nni_blockswap.training.average_precision import Result, average_precision, results_of
from nni_blockswap.training.classification import seed_epoch

CHECK_EVERY = 50
"""Steps between two looks at the loss; each look waits for the device."""


@dataclass(frozen=True)
class DetectionRecipe:
    """torchvision's reference settings for Mask R-CNN (the paper's section 7).

    Attributes:
        batch_size: images a step, over all processes.
        lr: after the warm-up, which rises linearly over ``warmup`` steps, and before the first milestone.
        milestones: epochs after which the learning rate is divided by 10.
        clip: largest 2-norm of a step's gradient, or None.
    """

    epochs: int = 26
    batch_size: int = 16
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (16, 22)
    warmup: int = 1000
    clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}.")

    def learning_rate(self, epoch: int, step: int) -> float:
        """Learning rate in ``epoch`` at ``step``, both counted from 0, steps over all epochs."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return float(self.lr * warm * 0.1 ** sum(epoch >= milestone for milestone in self.milestones))


class DetectionTraining(LightningModule):
    """Training of a detector.

    Args:
        network: in training mode (images, targets) -> losses by name, in evaluation mode images -> detections.
        task: COCO.
        recipe: optimiser and schedule.
    """

    def __init__(self, network: nn.Module, task: Coco, recipe: DetectionRecipe) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.recipe = recipe
        self.figures: dict[str, float] = {}
        """COCO's metrics after the last epoch."""
        self._found: dict[int, list[Result]] = {}
        self._watched = torch.zeros(())
        self._draws: torch.Generator | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD over what is trained; the learning rate is set at each step."""
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        recipe = self.recipe
        return torch.optim.SGD(trained, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)

    def on_train_epoch_start(self) -> None:
        """Set order, flips and sampled proposals from the epoch alone, so that a resumed run repeats no draw."""
        self._draws = seed_epoch(self.trainer, self.recipe.seed, self.device)
        self._watched = torch.zeros((), device=self.device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scale, and in training flip, the images on their device."""
        training = bool(self.trainer.training)
        return self.task.prepare(batch, train=training, generator=self._draws if training else None)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of the step."""
        rate = self.recipe.learning_rate(self.current_epoch, self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        self.log("learning_rate", rate, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Sum of the losses of one batch."""
        losses = self.task.losses(self.network, batch)
        loss = torch.stack(list(losses.values())).sum()
        self._watched += loss.detach()
        shown = {f"train/{name}": value for name, value in losses.items()}
        shown["train/loss"] = loss
        self.log_dict(shown, on_step=False, on_epoch=True, batch_size=len(batch[0]), sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop a diverged run before it replaces a good checkpoint."""
        if self.trainer.is_last_batch or (batch_idx + 1) % CHECK_EVERY == 0:
            total: Any = self.trainer.strategy.reduce(self._watched.clone(), reduce_op="sum")  # one process tells all
            if not bool(torch.isfinite(total)):
                raise TrainingError(
                    f"the loss is no longer finite in epoch {self.current_epoch + 1} (lr {self.recipe.lr:g}): "
                    "lower --lr, raise --warmup, or set --clip; the checkpoints of earlier epochs are kept."
                )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Detect."""
        images, targets = batch
        for target, found in zip(targets, self.network(images), strict=True):
            image_id = int(target["image_id"])
            self._found[image_id] = results_of(image_id, found)

    def on_validation_epoch_end(self) -> None:
        """Average precision over the images of all processes, computed by the first."""
        parts = [self._found]
        if self.trainer.world_size > 1:
            parts = [{} for _ in range(self.trainer.world_size)]
            distributed.all_gather_object(parts, self._found)
        if self.trainer.is_global_zero:
            found = {image_id: results for part in parts for image_id, results in part.items()}
            self.figures = average_precision(self.task.held_out.index, found)
        self.figures = self.trainer.strategy.broadcast(self.figures)
        self._found = {}
        self.log_dict({f"val/{name}": value for name, value in self.figures.items()}, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the figures with the weights that they belong to."""
        checkpoint["figures"] = self.figures

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back, for a run that was complete already."""
        self.figures = checkpoint["figures"]

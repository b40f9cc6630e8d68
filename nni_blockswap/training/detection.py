"""Training of Mask R-CNN: its losses, summed; COCO's average precision after each epoch."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from nni_blockswap.tasks.coco import Coco
from nni_blockswap.training.average_precision import Result, average_precision, results_of
from nni_blockswap.training.module import Training
from nni_blockswap.training.recipe import DetectionRecipe


class DetectionTraining(Training):
    """Training of a detector. Its figures are COCO's metrics.

    Args:
        network: in training mode (images, targets) -> losses by name, in evaluation mode images -> detections.
        task: COCO.
        recipe: optimiser and schedule.
    """

    def __init__(self, network: nn.Module, task: Coco, recipe: DetectionRecipe) -> None:
        super().__init__(network, task, recipe)
        self._found: dict[int, list[Result]] = {}

    @property
    def monitor(self) -> str:
        """Box AP, as COCO's metrics are logged."""
        return "val/box/AP"

    @property
    def remedy(self) -> str:
        """What a person may do when the loss is no longer finite."""
        return f" (lr {self.recipe.lr:g}): lower --lr, raise --warmup, or set --clip"

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Sum of the losses of one batch."""
        losses = self.task.losses(self.network, batch)
        loss = torch.stack(list(losses.values())).sum()
        self.watch({"loss": loss, **losses})
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Detect."""
        images, targets = batch
        for target, found in zip(targets, self.evaluated(images), strict=True):
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

"""Training accuracy on a minibatch, a metric of the paper's Table 1."""

import math
from typing import ClassVar

import torch

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.proxies.base import Score, check_classifies, one_tensor
from nni_blockswap.tasks import Batch, Task
from nni_blockswap.tasks.classification import classes_in


class Accuracy:
    """Share of the minibatch classified correctly, BN in training mode; NaN where an output is not finite."""

    name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    needs_weight_gradients: ClassVar[bool] = False

    @torch.no_grad()
    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """One forward pass. Raises ConfigError for a task without classes to count."""
        check_classifies(self.name, task)
        images, labels = batch
        logits = one_tensor(self.name, network(images))
        classes = classes_in(labels, logits)
        if classes is None:
            raise ConfigError(
                f"the proxy 'accuracy' compares answers {tuple(logits.shape)} with a class for each, and labels are "
                f"{tuple(labels.shape)} of {labels.dtype}: use fisher."
            )
        hits = float((logits.argmax(1) == classes).float().mean())
        return Score(hits if bool(logits.isfinite().all()) else math.nan)

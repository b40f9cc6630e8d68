"""What all image classification tasks share: cross-entropy, minibatches, their device and fingerprint."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # the field's own name

from nni_blockswap.errors import TooFewError
from nni_blockswap.metric import ACCURACY
from nni_blockswap.tasks.base import fingerprint

Labelled = tuple[Tensor, Tensor]
"""Images (N, C, H, W) and their classes (N,)."""


IGNORED = -100
"""The label of what is neither learned nor judged: cross-entropy's ``ignore_index``."""


class Classification:
    """Base of the classification tasks: a batch is (images (N, C, H, W), labels (N,))."""

    name: str
    num_classes: int
    metric = ACCURACY
    loss_name = "cross_entropy"

    def to(self, batch: Labelled, device: torch.device, dtype: torch.dtype | None = None) -> Labelled:
        """The batch on ``device``; floating-point images in ``dtype``."""
        images, labels = batch
        floating = dtype if images.is_floating_point() else None
        return images.to(device, floating, non_blocking=True), labels.to(device, non_blocking=True)

    def loss(self, network: nn.Module, batch: Labelled) -> Tensor:
        """``criterion`` of the network's answers."""
        images, labels = batch
        return self.criterion(network(images), labels)

    def criterion(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy, in float32 at least, a share of each label spread evenly over all classes."""
        logits = outputs if outputs.dtype == torch.float64 else outputs.float()
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    def figures(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """How good the network's answers are: means over the batch by name, the metric's own among them.

        Accuracy and, from ten classes on, how often the label is among the five likeliest. Outputs (N, classes) or
        (N, classes, ...), one a position; labels that are ``IGNORED`` do not count.
        """
        ranked = outputs.topk(min(5, outputs.shape[1]), dim=1).indices == labels.unsqueeze(1)
        found = {self.metric.key: _share(ranked[:, 0], labels)}
        if self.num_classes >= 10:
            found["top5"] = _share(ranked.any(1), labels)
        return found

    def training_figures(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What is told of a training batch beside its loss: accuracy, where that is the metric and labels are classes.

        Of shares of classes, the largest is the label, as ``classes_in`` has it.
        """
        classes = classes_in(labels, outputs)
        if self.metric != ACCURACY or classes is None:
            return {}
        return {ACCURACY.key: _share(outputs.argmax(1) == classes, classes)}

    def fingerprint(self, batch: Labelled) -> str:
        """Sixteen hexadecimal digits that name images and labels."""
        return fingerprint(batch)


def classes_in(labels: Tensor, outputs: Tensor) -> Tensor | None:
    """The class of each of a network's answers; None where labels are no classes, or answers tell no two apart.

    Args:
        labels: classes (N, ...), whole numbers; or shares of them, floats in the shape of the answers, as mixup makes
            them, of which the largest is the class.
        outputs: (N, classes, ...).

    Example:
        >>> shares, logits = torch.tensor([[0.7, 0.3]]), torch.zeros(1, 2)
        >>> classes_in(shares, logits), classes_in(shares[:, :1], logits[:, :1])
        (tensor([0]), None)
    """
    if outputs.dim() < 2 or outputs.shape[1] < 2:
        return None
    if labels.is_floating_point():
        return labels.argmax(1) if labels.shape == outputs.shape else None
    return labels if labels.shape == (outputs.shape[0], *outputs.shape[2:]) else None


def _share(hits: Tensor, labels: Tensor) -> Tensor:
    """How many of the labels that count are hit; 0 where none counts. Labels without a sign all count."""
    if labels.is_floating_point() or not labels.is_signed():  # 156 as a byte would equal -100
        return hits.float().mean()
    return hits.float().mean() * (labels.numel() / (labels != IGNORED).sum().clamp(min=1))


def minibatch_indices(size: int, batch_size: int, seed: int, index: int) -> Sequence[int]:
    """Positions of the ``index``-th minibatch in a training set of ``size``, shuffled by ``seed``.

    Raises:
        TooFewError: the training set holds fewer than ``batch_size`` * (``index`` + 1) examples.
    """
    if batch_size * (index + 1) > size:
        raise TooFewError(
            f"{index + 1} minibatch(es) of {batch_size} need {batch_size * (index + 1)} training examples; "
            f"there are {size}: lower the batch size or the number of minibatches."
        )
    order = np.random.default_rng(seed).permutation(size)
    chosen: list[int] = order[batch_size * index : batch_size * (index + 1)].tolist()
    return chosen

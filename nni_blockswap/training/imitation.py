"""What a student can imitate of its teacher beside its attention: its answers, and its activations."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nni_blockswap.errors import SpaceError


def logit_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's distribution over the classes is from the teacher's, both softened.

        d = T^2 KL( softmax(teacher / T) || softmax(student / T) ),    mean over the batch, and over positions if any

    T^2 keeps its gradient at the size that it has at T = 1.

    Args:
        student, teacher: logits (N, classes) or (N, classes, ...). No gradient flows to the teacher's.
        temperature: T.

    Example:
        >>> logit_distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]), 4.0).item()
        0.0

    Source: Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, 2015.
    """
    softened = F.log_softmax(student.float() / temperature, 1)
    wanted = F.log_softmax(teacher.detach().float() / temperature, 1)
    return temperature**2 * F.kl_div(softened, wanted, reduction="none", log_target=True).sum(1).mean()


def feature_distances(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the activations at each point, over the teacher's variance there.

        d = mean( (student - teacher)^2 ) / var(teacher)

    so that 1 is what a student reaches that answers with the teacher's mean.

    Args:
        student_maps, teacher_maps: activations of equal shapes, one a point. No gradient flows to the teacher's.

    Returns:
        (points,), in float32.

    Raises:
        SpaceError: shapes differ.

    Example:
        >>> teacher = torch.tensor([[1.0, 3.0]])
        >>> feature_distances([torch.full((1, 2), 2.0)], [teacher]).tolist()
        [1.0]
    """
    return torch.stack([_over_variance(*pair) for pair in zip(student_maps, teacher_maps, strict=True)])


def _over_variance(student: Tensor, teacher: Tensor) -> Tensor:
    if student.shape != teacher.shape:
        raise SpaceError(
            f"activations are matched where they have one shape, and here the student's is {tuple(student.shape)} and "
            f"the teacher's {tuple(teacher.shape)}."
        )
    wanted = teacher.detach().float()
    variance = wanted.var(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
    return (student.float() - wanted).square().mean() / variance

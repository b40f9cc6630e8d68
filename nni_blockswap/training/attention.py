"""Attention transfer: a student learns to attend where its teacher does (equation (1) of the paper).

    f(A)  = (1/C) sum_c A_c^2, elementwise, flattened                    attention map
    q(A)  = f(A) / ||f(A)||_2                                            of unit length
    loss  = cross-entropy + beta * sum_i d(q(A_i of the student), q(A_i of the teacher))

The paper writes d as the 2-norm of the difference. Every public implementation, and the paper's beta = 1000, uses the
mean of its squares over batch and positions instead: ``mode="mse"``, the default. With ``mode="norm"``, the written
form, and beta = 1000 the term is some hundred times larger and drowns the cross-entropy: lower beta accordingly.

Source: Turner et al., *BlockSwap*, ICLR 2020, section 3; Zagoruyko & Komodakis, *Paying More Attention to Attention*,
ICLR 2017.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from nni_blockswap.errors import ConfigError, SpaceError

Mode = Literal["mse", "norm"]
"""How two attention maps are compared."""


def attention_map(activation: Tensor) -> Tensor:
    """Mean over channels of the squared activation: (N, C, H, W) -> (N, H * W), in float32 or better."""
    precise = activation.to(torch.promote_types(activation.dtype, torch.float32))
    return precise.square().mean(1).flatten(1)


def attention_distances(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], mode: Mode = "mse") -> Tensor:
    """Distance between student and teacher at each attention point.

    Args:
        student_maps, teacher_maps: activations (N, C, H, W), one an attention point; C may differ between the two.
            No gradient flows to the teacher's.
        mode: ``"mse"``, mean over batch and positions of the squared difference of the normalised maps; or
            ``"norm"``, mean over the batch of the difference's 2-norm.

    Returns:
        (points,), in float32 or better whatever the precision of the activations.

    Raises:
        SpaceError: the two have different numbers of points, a point is no map, or has another batch or spatial size.
        ConfigError: there is no such mode.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"the form of attention transfer is {' or '.join(get_args(Mode))}, not '{mode}'.")
    if len(student_maps) != len(teacher_maps):
        raise SpaceError(
            f"attention is transferred point by point, but the student has {len(student_maps)} points and the teacher "
            f"{len(teacher_maps)}; take both from the same search space."
        )
    pairs = enumerate(zip(student_maps, teacher_maps, strict=True))
    return torch.stack([_distance(index, student, teacher, mode) for index, (student, teacher) in pairs])


def attention_transfer_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], mode: Mode = "mse"
) -> Tensor:
    """Sum over the attention points of ``attention_distances``: the scalar that beta multiplies, once.

    Example:
        >>> student, teacher = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
        >>> student[0, 0, 0, 0] = teacher[0, 0, 1, 1] = 3.0  # each looks at another corner
        >>> [attention_transfer_loss([student], [teacher], mode).item() for mode in ("mse", "norm")]
        [0.5, 1.4142135381698608]
    """
    return attention_distances(student_maps, teacher_maps, mode).sum()


def _distance(index: int, student: Tensor, teacher: Tensor, mode: Mode) -> Tensor:
    for activation in (student, teacher):
        _check_map(index, activation)
    if student[:, 0].shape != teacher[:, 0].shape:
        raise SpaceError(
            f"attention point {index} is {_size(student)} in the student and {_size(teacher)} in the teacher; "
            "both must see the same images at the same resolution."
        )
    difference = F.normalize(attention_map(student)) - F.normalize(attention_map(teacher.detach()))  # (N, H * W)
    return difference.square().mean() if mode == "mse" else torch.linalg.vector_norm(difference, dim=1).mean()


def _check_map(index: int, activation: object) -> None:
    kind = f"{activation.dim()}-dimensional tensor" if isinstance(activation, Tensor) else type(activation).__name__
    if kind != "4-dimensional tensor":
        raise SpaceError(
            f"attention is compared at maps (N, C, H, W), and attention point {index} gives a {kind}; name another."
        )


def _size(activation: Tensor) -> str:
    return f"{activation.shape[0]} images of {activation.shape[2]}x{activation.shape[3]}"

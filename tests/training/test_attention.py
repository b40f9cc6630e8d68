"""Attention transfer against a literal float64 computation, element by element."""

import math

import pytest
import torch
from torch import nn

from nni_blockswap.blocks.capture import captured
from nni_blockswap.errors import ConfigError, SpaceError
from nni_blockswap.training.attention import attention_distances, attention_map, attention_transfer_loss

SHAPES = ((3, 8, 5, 4), (3, 16, 3, 2), (3, 4, 1, 2))
"""Three attention points, (N, C, H, W)."""


def activations(seed: int, shapes=SHAPES, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def unit_map(activation: list) -> list[float]:
    """f(A) / ||f(A)||_2 of one image, [C][H][W], by loops."""
    channels, height, width = len(activation), len(activation[0]), len(activation[0][0])
    attention = [
        sum(activation[c][i][j] ** 2 for c in range(channels)) / channels for i in range(height) for j in range(width)
    ]
    length = math.sqrt(sum(value**2 for value in attention))
    return [value / length for value in attention]


def literal(student: list[torch.Tensor], teacher: list[torch.Tensor], mode: str) -> list[float]:
    """Distance at each point, straight from equation (1)."""
    points = []
    for of_student, of_teacher in zip(student, teacher, strict=True):
        squares, norms, positions = 0.0, 0.0, 0
        for image_s, image_t in zip(of_student.tolist(), of_teacher.tolist(), strict=True):
            differences = [t - s for s, t in zip(unit_map(image_s), unit_map(image_t), strict=True)]
            squares += sum(difference**2 for difference in differences)
            norms += math.sqrt(sum(difference**2 for difference in differences))
            positions += len(differences)
        points.append(squares / positions if mode == "mse" else norms / len(of_student))
    return points


@pytest.mark.parametrize("mode", ["mse", "norm"])
def test_equals_the_literal_computation(mode: str) -> None:
    student, teacher = activations(0), activations(1)
    expected = literal(student, teacher, mode)
    assert attention_distances(student, teacher, mode).tolist() == pytest.approx(expected, rel=1e-12)
    assert attention_transfer_loss(student, teacher, mode).item() == pytest.approx(sum(expected), rel=1e-12)


def test_widths_may_differ() -> None:
    narrow = activations(2, [(n, c // 2, h, w) for n, c, h, w in SHAPES])
    teacher = activations(1)
    assert attention_distances(narrow, teacher).tolist() == pytest.approx(literal(narrow, teacher, "mse"), rel=1e-12)


def test_is_zero_at_equal_attention_and_blind_to_scale() -> None:
    teacher = activations(1)
    assert attention_transfer_loss([-3 * a for a in teacher], teacher).item() == pytest.approx(0, abs=1e-30)


@pytest.mark.parametrize("mode", ["mse", "norm"])
def test_gradient_reaches_the_student_only_and_is_finite_where_they_agree(mode: str) -> None:
    student = [a.requires_grad_() for a in activations(0)]
    teacher = [a.requires_grad_() for a in activations(1)]
    attention_transfer_loss(student, teacher, mode).backward()
    assert all(a.grad is not None and a.grad.abs().sum() > 0 for a in student)
    assert all(a.grad is None for a in teacher)

    same = activations(1)[0].requires_grad_()
    attention_transfer_loss([same], [same.detach().clone()], mode).backward()
    assert torch.isfinite(same.grad).all()


def test_half_precision_activations_are_summed_in_float32() -> None:
    student, teacher = activations(0, dtype=torch.bfloat16), activations(1, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances = attention_distances(student, teacher)
    assert distances.dtype == torch.float32
    exact = literal([a.double() for a in student], [a.double() for a in teacher], "mse")
    assert distances.tolist() == pytest.approx(exact, rel=1e-5)  # bfloat16 sums would be off by 1e-2
    assert attention_map(torch.full((1, 2, 1, 1), 300.0, dtype=torch.float16)).item() == 90_000  # beyond float16


def test_unequal_points_are_refused() -> None:
    student, teacher = activations(0), activations(1)
    with pytest.raises(SpaceError, match="student has 2 points and the teacher 3"):
        attention_transfer_loss(student[:2], teacher)
    with pytest.raises(SpaceError, match=r"point 1 is 3 images of 3x2 in .* and 3 images of 1x2 in the teacher"):
        attention_transfer_loss(student, [teacher[0], teacher[2], teacher[1]])
    with pytest.raises(ConfigError, match="mse or norm, not 'l2'"):
        attention_transfer_loss(student, teacher, "l2")


def test_capture_collects_in_the_order_asked_for_and_leaves_no_hook() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(2, 3, 1)), nn.Flatten())
    images = torch.ones(1, 1, 2, 2)
    with captured(network, ["1.1", "0"]) as seen:
        network(images)
    assert list(seen) == ["1.1", "0"]
    assert torch.equal(seen["0"], network[0](images))
    assert torch.equal(seen["1.1"], network[1](network[0](images)))

    with pytest.raises(RuntimeError, match="broken"), captured(network, ["0"]):
        raise RuntimeError("broken")
    assert not any(module._forward_hooks for module in network.modules())


def test_a_point_that_does_not_exist_is_named() -> None:
    with pytest.raises(SpaceError, match="no module 'stage9'"), captured(nn.Sequential(), ["stage9"]):
        pass

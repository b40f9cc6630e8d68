"""Logit distillation and feature matching against literal float64 computations."""

import math

import pytest
import torch

from nni_blockswap.errors import SpaceError
from nni_blockswap.training.imitation import feature_distances, logit_distance


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(logit / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logit_distance_is_hintons(temperature: float) -> None:
    student, teacher = drawn(5, 7), 3 * drawn(5, 7, seed=1)
    divergences = [
        sum(p * math.log(p / q) for p, q in zip(softmax(t, temperature), softmax(s, temperature), strict=True))
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    expected = temperature**2 * sum(divergences) / 5
    assert logit_distance(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_its_gradient_keeps_its_size_whatever_the_temperature_and_reaches_the_student_alone() -> None:
    """At a high temperature it tends to (z_student - z_teacher) / (N classes), for logits of mean 0 (section 2.1)."""
    student, teacher = drawn(4, 6).requires_grad_(), drawn(4, 6, seed=1).requires_grad_()
    logit_distance(student, teacher, 1000.0).backward()
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(student.grad, difference.detach() / (4 * 6), rtol=1e-2, atol=1e-5)
    assert teacher.grad is None


def test_dense_answers_are_compared_at_every_position() -> None:
    student, teacher = drawn(2, 5, 3, 4), drawn(2, 5, 3, 4, seed=1)
    by_position = [
        logit_distance(student[:, :, i, j], teacher[:, :, i, j], 2.0).item() for i in range(3) for j in range(4)
    ]
    assert logit_distance(student, teacher, 2.0).item() == pytest.approx(sum(by_position) / 12, rel=1e-5)


def test_feature_distance_is_the_mean_square_over_the_teachers_variance() -> None:
    student, teacher = drawn(3, 2, 4, 4), 5 + 2 * drawn(3, 2, 4, 4, seed=1)
    values = teacher.double().flatten().tolist()
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    squares = sum((s - t) ** 2 for s, t in zip(student.double().flatten().tolist(), values, strict=True)) / len(values)
    (found,) = feature_distances([student], [teacher]).tolist()
    assert found == pytest.approx(squares / variance, rel=1e-5)
    assert feature_distances([torch.full_like(teacher, mean)], [teacher]).item() == pytest.approx(1.0, rel=1e-5)
    assert feature_distances([10 * student], [10 * teacher]).item() == pytest.approx(found, rel=1e-5)


def test_features_of_other_shapes_are_refused_and_the_teacher_has_no_gradient() -> None:
    with pytest.raises(SpaceError, match=r"the student's is \(1, 2, 4, 4\) and the teacher's \(1, 3, 4, 4\)"):
        feature_distances([drawn(1, 2, 4, 4)], [drawn(1, 3, 4, 4)])
    student, teacher = drawn(1, 2, 4, 4).requires_grad_(), drawn(1, 2, 4, 4, seed=1).requires_grad_()
    feature_distances([student], [teacher]).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None
    still = feature_distances([student], [torch.zeros(1, 2, 4, 4)])  # a dead teacher: no variance
    assert bool(torch.isfinite(still).all()) or bool(still > 1e30)

"""What students and teachers of one's own may be: wrapped, masked, with weights that others make; and what not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap.errors import BlockSwapError
from nni_blockswap.networks import not_finite
from tests.training.quarters import BATCHES, net, run


class Masked(nn.Sequential):
    """Its buffer says by an infinity which logits it leaves out; a weight has five dimensions."""

    def __init__(self) -> None:
        super().__init__(*net(8))
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -torch.inf]))
        self.scale = nn.Parameter(torch.ones(1, 1, 1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale.flatten() * super().forward(images) + self.mask.exp()


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_mask_may_be_infinite_and_a_weight_of_any_dimension(ema: float | None, tmp_path: Path) -> None:
    result = run(tmp_path, student=Masked(), epochs=1, ema=ema)
    kept = torch.load(result.weights, weights_only=True)
    assert kept["mask"].tolist() == [0, 0, 0, -torch.inf]
    assert kept["scale"].item() != 1


def test_wrappers_are_taken_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = nn.DataParallel(net(8))
    result = run(tmp_path / "wrapped", nn.DataParallel(net(16, seed=1)), student=student, beta=10.0, init="teacher")
    plain = run(tmp_path / "plain", net(16, seed=1), beta=10.0, init="teacher")
    assert result.student is student
    assert not student.module.training
    weights = torch.load(result.weights, weights_only=True)
    assert all(torch.equal(weights[name], value) for name, value in plain.student.state_dict().items())
    assert all(torch.equal(weights[name], value) for name, value in student.module.state_dict().items())
    assert "the teacher is taken without the DataParallel around it" in capsys.readouterr().out


class Viewing(nn.Sequential):
    """Its code wants memory as torch lays it out by itself; with channels last ``view`` raises."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 8, 3, padding=1), nn.MaxPool2d(2), nn.Linear(128, 4))

    def forward(self, images: Tensor) -> Tensor:
        maps = self[1](self[0](images))
        return self[2](maps.view(len(maps), -1))


@pytest.mark.parametrize(("student", "teacher"), [(Viewing, Viewing), (net, Viewing), (Viewing, net)])
def test_a_networks_code_may_need_torchs_own_layout(student: Any, teacher: Any, tmp_path: Path) -> None:
    made = [kind(8) if kind is net else kind() for kind in (student, teacher)]
    images = BATCHES[0][0]
    result = run(tmp_path, made[1], student=made[0], kd=1.0, ema=0.5, attention_points=["0"], beta=10.0)
    assert result.student(images).shape == (32, 4)
    assert made[0][0].weight.is_contiguous()
    after = run(tmp_path, made[1], student=made[0], kd=1.0, ema=0.5, attention_points=["0"], beta=10.0, epochs=3)
    assert len(after.history) == 3


def test_a_norm_of_the_batch_may_stand_behind_a_pool(tmp_path: Path) -> None:
    pooled, normed = (
        nn.AdaptiveAvgPool2d(1),
        nn.BatchNorm2d(8, track_running_stats=False),
    )  # which one image cannot pass
    student = nn.Sequential(nn.Conv2d(1, 8, 3), pooled, normed, nn.Flatten(), nn.Linear(8, 4))
    run(tmp_path, student=student, epochs=1)
    assert student[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_where_it_can_a_network_is_trained_with_channels_last(tmp_path: Path) -> None:
    student = net(8)
    run(tmp_path, student=student, epochs=1)
    assert student[4].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_teacher_may_have_weights_that_are_computed(tmp_path: Path) -> None:
    teacher = net(16, seed=1)
    nn.utils.weight_norm(teacher[4])
    plain = run(tmp_path / "plain", teacher, kd=1.0)
    teacher(BATCHES[0][0])  # leaves a weight with a gradient
    assert run(tmp_path / "ran", teacher, kd=1.0).teacher_metric == plain.teacher_metric


def uncopied() -> nn.Module:
    teacher = net(8)
    teacher.seen = (number for number in range(3))
    return teacher


class Noting(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"seen": 3}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"student": "resnet18"}, r"the student is a torch\.nn\.Module, not a str"),
        (
            {"student": nn.Sequential(nn.Flatten(), Noting(64, 4))},
            r"student keeps '1\._extra_state' \(get_extra_state\)",
        ),
        ({"teacher": uncopied(), "kd": 1.0}, "the teacher cannot be copied: cannot pickle 'generator' object"),
        ({"student": net(8).requires_grad_(False)}, "no weight to train"),
        ({"student": nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())}, "no weight to train"),
        ({"teacher": net(8), "beta": 1.0, "attention_points": ["9"]}, "attention point 0 gives a 2-dimensional tensor"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BlockSwapError, match=sentence):
        run(tmp_path, **options)
    assert not list(tmp_path.glob("*.ckpt"))


def test_functions_of_ones_own_are_tried_where_the_student_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nni_blockswap.training.preparing.training_device", lambda: torch.device("meta"))
    met = []

    class Weighted(nn.CrossEntropyLoss):
        def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
            assert self.weight is not None
            met.append((outputs.device.type, labels.device.type, self.weight.device.type))
            raise NotImplementedError

    with pytest.raises(BlockSwapError, match="loss or metric cannot be had"):
        run(tmp_path, loss=Weighted(weight=torch.ones(4)))
    assert met == [("meta", "meta", "meta")]


def test_what_no_state_keeps_may_be_no_number(tmp_path: Path) -> None:
    student = net(8)
    student.register_buffer("scratch", torch.full((3,), torch.nan), persistent=False)
    assert not_finite(student) is None
    run(tmp_path, student=student, epochs=1)
    student.register_buffer("kept", torch.full((3,), torch.nan))
    assert not_finite(student) == "kept"
    assert not_finite(student, among=["0.weight"]) is None

"""``distill``: any network, any batches, any loss; and what is refused."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import nni_blockswap
from nni_blockswap.errors import ConfigError, DataError, SpaceError, TrainingError
from nni_blockswap.files import read_json
from nni_blockswap.metric import Metric
from nni_blockswap.training.distilling import distill
from tests.training.quarters import BATCHES, HELD_OUT, ROOT, TRAIN, VAL, accuracy, net, run


def test_it_trains_judges_and_keeps_what_it_says(tmp_path: Path, teacher: nn.Module) -> None:
    before = copy.deepcopy(teacher.state_dict())
    modes = [module.training for module in teacher.modules()]
    student = net(8)
    result = nni_blockswap.distill(student, teacher, BATCHES, HELD_OUT, epochs=8, out=tmp_path, lr=0.05, beta=10.0)
    assert result.student is student
    assert result.metric == pytest.approx(accuracy(student))
    assert result.metric > 0.6  # chance is a quarter
    assert result.teacher_metric == pytest.approx(accuracy(copy.deepcopy(teacher)))
    curve = [epoch["val/accuracy"] for epoch in result.history]
    assert (len(curve), curve[-1], max(curve)) == (8, result.metric, result.best)
    assert {"train/attention/2", "train/attention/6"} < result.history[0].keys()  # the ends of its two stages
    fresh = net(8, seed=5)
    fresh.load_state_dict(torch.load(result.weights, weights_only=True))
    assert accuracy(fresh) == pytest.approx(result.metric)
    fresh.load_state_dict(torch.load(result.best_weights, weights_only=True))
    assert accuracy(fresh) == pytest.approx(result.best)
    kept = read_json(tmp_path / "result.json")
    assert (kept["accuracy"], kept["epochs"], kept["teacher_accuracy"]) == (result.metric, 8, result.teacher_metric)
    assert kept["metric"]["name"] == "accuracy"
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert [module.training for module in teacher.modules()] == modes
    assert all(weight.requires_grad for weight in teacher.parameters())


class Module(LightningDataModule):
    """Somebody's own."""

    def setup(self, stage: str) -> None:
        self.ready = True

    def train_dataloader(self) -> Any:
        assert self.ready
        return DataLoader(TRAIN, 32)

    def val_dataloader(self) -> Any:
        return DataLoader(VAL, 20)


def test_batches_loaders_datasets_and_data_modules_are_the_same_to_it(tmp_path: Path) -> None:
    sources: list[dict[str, Any]] = [
        {},
        {"train": DataLoader(TRAIN, 32), "val": DataLoader(VAL, 20)},
        {"train": Module(), "val": None},
    ]
    results = [run(tmp_path / str(number), **source) for number, source in enumerate(sources)]
    for other in results[1:]:
        assert all(
            torch.equal(value, other.student.state_dict()[name])
            for name, value in results[0].student.state_dict().items()
        )
    shuffled = run(tmp_path / "shuffled", train=TRAIN, val=VAL, batch_size=32)
    assert shuffled.metric == pytest.approx(accuracy(shuffled.student))
    assert read_json(tmp_path / "shuffled" / "settings.json")["batch_size"] == 32


def test_a_users_loader_has_its_own_generators_again(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TRAIN, 32, shuffle=True, generator=generator)
    orders = [run(tmp_path / str(number), train=loader).history[0]["train/loss"] for number in range(2)]
    assert orders[0] == orders[1]  # the seed decides, wherever the loader's generator stood
    assert loader.generator is generator
    assert loader.sampler.generator is generator


def test_data_that_comes_in_another_order_every_time_is_no_hindrance(tmp_path: Path) -> None:
    for _ in range(2):
        run(tmp_path, val=DataLoader(VAL, 8, shuffle=True), epochs=1)


def test_logits_alone_can_be_imitated_without_labels_that_say_anything(tmp_path: Path, teacher: nn.Module) -> None:
    """The teacher's answers are all that a student can learn where the labels are noise."""
    taught = distill(copy.deepcopy(teacher), None, BATCHES, HELD_OUT, epochs=8, out=tmp_path / "t", beta=0, lr=0.05)
    noise = [(images, torch.randint(4, (len(images),))) for images, _ in BATCHES]
    options = {"train": noise, "epochs": 8, "student": net(8)}
    imitating = run(tmp_path / "s", taught.student, kd=20.0, temperature=2.0, **options)
    assert imitating.metric > 0.6
    assert "train/logits" in imitating.history[0]


def test_features_are_matched_where_shapes_agree(tmp_path: Path, teacher: nn.Module) -> None:
    result = run(tmp_path, teacher, features=1.0)
    assert [name for name in result.history[0] if "features/" in name] == ["train/features/6"]  # 8 channels in both
    first, last = (epoch["train/features/6"] for epoch in (result.history[0], result.history[-1]))
    assert last < first
    with pytest.raises(ConfigError, match="none of 2 is such a place; set features to 0"):
        run(tmp_path / "no", teacher, features=1.0, attention_points=["2"])


def test_it_starts_from_its_teacher_or_afresh(tmp_path: Path, teacher: nn.Module) -> None:
    nothing = {"lr": 1e-30, "weight_decay": 0.0, "epochs": 1, "limit_steps": 1}
    same = run(tmp_path / "teacher", teacher, init="teacher", student=net(16, seed=9), **nothing)
    assert torch.equal(same.student[0].weight, teacher[0].weight)
    redrawn = [run(tmp_path / f"fresh{n}", init="fresh", student=net(8, seed=n), **nothing) for n in (1, 2)]
    assert torch.equal(redrawn[0].student[0].weight, redrawn[1].student[0].weight)


def test_a_regression_has_its_own_loss_and_metric_lower_being_better(tmp_path: Path) -> None:
    def error(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs - labels).abs().mean()

    train, val = ([(images, labels.float()[:, None]) for images, labels in part] for part in (BATCHES, HELD_OUT))
    options = {"train": train, "val": val, "loss": F.mse_loss, "student": net(8, classes=1), "epochs": 6}
    by_loss = run(tmp_path / "loss", **options)
    assert by_loss.judged_by == Metric("loss", higher_is_better=False, is_share=False)
    assert by_loss.metric == pytest.approx(by_loss.history[-1]["val/loss"])
    assert by_loss.best == min(epoch["val/loss"] for epoch in by_loss.history) < by_loss.history[0]["val/loss"]
    metric = (Metric("mean error", higher_is_better=False, is_share=False), error)
    by_error = run(tmp_path / "error", **{**options, "metric": metric, "student": net(8, classes=1)})
    assert by_error.best == min(epoch["val/mean_error"] for epoch in by_error.history)
    assert "train/own_loss" in by_error.history[0]
    kept = read_json(tmp_path / "error" / "result.json")
    assert kept["metric"] == {"name": "mean error", "higher_is_better": False, "is_share": False}
    assert kept["mean_error"] == by_error.metric


def test_dense_answers_are_learned(tmp_path: Path) -> None:
    """A label for every pixel: whether it is bright."""

    def dense(part: Any) -> list[tuple[Tensor, Tensor]]:
        return [(images, (images[:, 0] > 0).long()) for images, _ in part]

    student = nn.Sequential(nn.Conv2d(1, 2, 1))
    result = run(tmp_path, student=student, train=dense(BATCHES), val=dense(HELD_OUT), epochs=6, lr=0.5)
    assert result.metric > 0.9


def test_features_are_matched_where_there_are_no_maps_too(tmp_path: Path, teacher: nn.Module) -> None:
    """The last linear layer's: there nothing is drawn."""
    result = run(tmp_path, teacher, features=1.0, attention_points=["0", "9", "9"], epochs=1)
    assert {name for name in result.history[0] if "features" in name} == {"train/features/9"}
    with pytest.raises(ConfigError, match="activations of one shape, and none of 7 is such a place"):
        run(tmp_path / "none", teacher, student=never_there(), features=1.0, attention_points=["7"])


def never_there() -> nn.Sequential:
    """The same network, whose pooling gives a pair."""

    class Pair(nn.AdaptiveMaxPool2d):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    class First(nn.Flatten):
        def forward(self, pair: Any) -> Tensor:
            return super().forward(pair[0])

    network = net(8)
    network[7], network[8] = Pair(1), First()
    return network


def test_a_dataset_is_judged_on_in_whole_batches_beside_batches_to_learn_from(tmp_path: Path) -> None:
    seen: list[int] = []

    def noting(outputs: Tensor, labels: Tensor) -> float:
        seen.append(len(labels))
        return 0.5

    run(tmp_path, val=VAL, epochs=1, metric=("noting", noting))
    assert seen == [2, 40]  # two are tried before


def test_it_goes_on_while_its_metric_is_undefined(tmp_path: Path) -> None:
    """For as many epochs as it has patience."""
    told: list[float] = []

    def late(outputs: Tensor, labels: Tensor) -> float:
        told.append(float("nan") if len(told) < 3 else 0.5)  # tried once, then twice in the first epoch
        return told[-1]

    result = run(tmp_path, epochs=4, patience=2, metric=("late", late))
    assert [epoch["val/late"] for epoch in result.history][1:] == [pytest.approx(0.5)] * 3


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"colour": "red"}, ConfigError, "distill has no option 'colour'; a recipe's are accumulate, attention, beta"),
        ({"lr": float("nan")}, ConfigError, "--lr must be finite"),
        ({"beta": 3.0}, ConfigError, r"there is nobody to imitate \(beta 3\); give a teacher, or set beta=0\."),
        ({"init": True}, ConfigError, "a student starts from fresh or teacher or library, not 'True'"),
        ({"init": "fresh=weights.pt"}, ConfigError, "--init fresh takes nothing beside it, not 'fresh=weights.pt'"),
        ({"init": "library=lib"}, ConfigError, r"nobody to imitate \(kd 1\); give a teacher, or set kd=0\."),
        ({"batch_size": 8}, ConfigError, "batch_size is for a Dataset"),
        ({"train": TRAIN, "batch_size": 0}, ConfigError, "--batch-size must be above 0, not 0"),
        ({"train": TRAIN, "workers": -1}, ConfigError, "--workers must not be negative, as -1 is"),
        ({"train": iter(BATCHES)}, DataError, "train is a DataLoader, .* again, not a list_iterator"),
        ({"val": None}, DataError, "val is a DataLoader, a Dataset, or batches .* not a NoneType"),
        ({"train": Module()}, ConfigError, "a LightningDataModule has its own validation batches; leave val out"),
        ({"train": []}, DataError, "train gives no batch"),
        ({"student": net(8, classes=3)}, ConfigError, "train has a label 3, and the student tells 3 classes apart"),
        ({"student": nn.Linear(3, 4)}, ConfigError, r"the student does not take images of \(1, 8, 8\) from train"),
        ({"student": nn.LSTM(8, 4)}, ConfigError, "the student"),
        ({"loss": lambda outputs, labels: 1.0}, DataError, "the loss has to give a scalar tensor, .*, not a float"),
        ({"loss": lambda outputs, labels: outputs}, DataError, "a scalar tensor, .* not a tensor of shape"),
        ({"loss": lambda outputs, labels: outputs + "x"}, ConfigError, "loss or metric cannot be had of outputs"),
        ({"loss": F.mse_loss, "label_smoothing": 0.1}, ConfigError, "label_smoothing belongs to cross-entropy"),
        ({"metric": lambda outputs, labels: 0.5}, ConfigError, "metric is a pair of a name"),
        ({"metric": ("m", lambda outputs, labels: outputs[0])}, DataError, r"one number, .* of shape \(4,\)"),
        ({"train": [(images, {"y": labels}) for images, labels in BATCHES]}, DataError, "of train are a dict"),
        ({"val": [(images, ["a"] * len(labels)) for images, labels in HELD_OUT]}, DataError, "of val are a list that"),
        ({"metric": ("loss", lambda outputs, labels: 1.0)}, ConfigError, "a result has a 'loss' already"),
        ({"precision": "64"}, ConfigError, "--precision is one of"),
        ({"init": "teacher"}, ConfigError, "needs a teacher"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_a_sentence_before_any_work(
    options: dict[str, Any], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=sentence):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out" / "settings.json").exists()


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path, teacher: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"the teacher has \(3,\) of them and the student \(4,\): set kd=0"):
        run(tmp_path, net(8, classes=3), kd=1.0)
    with pytest.raises(SpaceError, match="no module 'stage9'"):
        run(tmp_path, teacher, beta=1.0, attention_points=["stage9"])


class TwoHeads(nn.Sequential):
    """In training it answers twice."""

    def forward(self, images: Tensor) -> Any:
        answer = super().forward(images)
        return (answer, answer) if self.training else answer


def test_a_student_that_answers_otherwise_in_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in training the network answers with a tuple"):
        run(tmp_path, student=TwoHeads(*net(8)))


def test_a_diverged_run_ends_in_a_sentence_and_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no longer finite"):
        run(tmp_path, lr=1e30)
    assert not {"result.json", "weights.pt", "last.ckpt", "best.ckpt"} & {path.name for path in tmp_path.iterdir()}


def test_it_needs_no_nni() -> None:
    program = "import sys; from nni_blockswap import distill; print(distill.__name__, 'nni' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["distill", "False"]


def test_a_network_of_ones_own_is_swapped_searched_and_distilled_in_a_few_lines(tmp_path: Path) -> None:
    model = distill(net(16), None, BATCHES, HELD_OUT, epochs=8, out=tmp_path / "model", beta=0, lr=0.05).student
    space = nni_blockswap.swap_blocks(model, torch.zeros(1, 1, 8, 8))
    settings = {"samples": 4, "batch_size": 16, "device": "cpu", "precision": "float32", "at_most": True}
    ranking = nni_blockswap.search(space, BATCHES, budget="90%", on_progress=lambda progress: None, **settings)
    student = ranking.best.build()
    options = {"epochs": 4, "lr": 0.05, "init": "teacher", "beta": 10.0, "kd": 1.0}
    result = distill(student, model, BATCHES, HELD_OUT, out=tmp_path / "student", **options)
    assert result.metric == pytest.approx(accuracy(result.student))
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]
    assert result.teacher_metric == pytest.approx(accuracy(model))
    assert sum(weight.numel() for weight in result.student.parameters()) == ranking.best.params


def test_a_student_in_eval_mode_learns_as_one_in_training_mode(tmp_path: Path) -> None:
    """As a network is that a person evaluated, and everything that is built of it."""
    plain = run(tmp_path / "plain")
    evaluated = run(tmp_path / "evaluated", student=net(8).eval())
    assert evaluated.history == plain.history
    assert any("running_mean" in name and value.any() for name, value in evaluated.student.state_dict().items())

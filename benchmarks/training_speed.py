"""How fast is a step of distillation? WRN-40-2 teaches students of 400K parameters; batch 128, crop, flip and Cutout.

In one run, in turns, so that a machine that gets busier shows:

- a plain loop: images augmented one by one by torchvision's transforms in a DataLoader, NCHW, float32, attention by
  hooks, figures read after every step;
- the trial itself: ``training.classification`` under Lightning's trainer, as ``python -m trial.distill`` runs it, in
  every precision that the device has.

All students are random ones within 2.5 % of the budget, the same for all ways. Weights are random, too: they cost the
same. Writes the section of this machine's device into benchmarks/results/training_speed.md and leaves the others.

    python benchmarks/training_speed.py --data-root data/cifar10
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor, wait, write_section  # noqa: E402
from benchmarks.precision import SPACE  # noqa: E402
from nni_blockswap.architecture import Architecture  # noqa: E402
from nni_blockswap.blocks.weights import seeded  # noqa: E402
from nni_blockswap.cost.budget import Budget  # noqa: E402
from nni_blockswap.methods.sampler import Sampler  # noqa: E402
from nni_blockswap.spaces import cost_table  # noqa: E402
from nni_blockswap.tasks import Task, make_task  # noqa: E402
from nni_blockswap.training.classification import ImageTraining, Teacher  # noqa: E402
from nni_blockswap.training.machine import Machine  # noqa: E402
from nni_blockswap.training.program import quietly  # noqa: E402
from nni_blockswap.training.recipe import Recipe  # noqa: E402
from nni_blockswap.training.running import make_trainer  # noqa: E402

BUDGET, BATCH, WARM_UP = "400K", 128, 3
EPOCH = 50_000 // BATCH * BATCH
RESULTS = ROOT / "benchmarks" / "results" / "training_speed.md"
HEADER = f"""# Speed of training

A step of distillation: WRN-40-2 teaches students of {BUDGET} parameters; batch {BATCH} of CIFAR-10; crop, flip and
Cutout; attention transfer at three points. Command, on either device:
`python benchmarks/training_speed.py --data-root data/cifar10`.

Tried on the CPU and not kept: `torch.compile` of both networks, 2 % faster in bfloat16 and slower in float32, after one
to two minutes of compilation for each student.

"""
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@quietly()
def main() -> None:
    """Measure, and write the section of this device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each way and turn")
    parser.add_argument("--students", type=int, default=3, help="one a turn")
    options = parser.parse_args()
    images = BATCH * (WARM_UP + options.steps)
    task = make_task("cifar10", options.data_root, limit=images, held_out=BATCH)
    ways: dict[str, Callable[[Architecture], float]] = {"plain loop, float32": partial(plain, task=task)}
    for precision in ("32-true", "bf16-mixed"):
        ways[f"trial, {precision}"] = partial(trial, task=task, precision=precision)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for student in students(options.students):
        for way, measure in ways.items():
            seconds[way].append(measure(student))
            print(f"{student.id} ({student.params:,} parameters), {way}: {1000 * seconds[way][-1]:.0f} ms a step")
    write_section(RESULTS, HEADER, section(seconds, options.steps))


def students(count: int) -> list[Architecture]:
    """Random ones in the budget."""
    table = cost_table(SPACE)
    found = Sampler(table, Budget.parse(BUDGET, 0.025)).sample(count, np.random.default_rng(0))
    return [Architecture.from_indices(SPACE, {}, table, indices) for indices in found]


def networks(student: Architecture) -> tuple[Any, Any]:
    """Student and teacher, the network whose blocks are all standard."""
    original = Architecture.from_choices(SPACE, ["S"] * len(student.choices))
    with seeded(0):
        return student.build(), original.build()


def trial(student: Architecture, task: Task, precision: str) -> float:
    """Seconds of a step in the trial."""
    network, teacher = networks(student)
    module = ImageTraining(network, task, Recipe(), Teacher(teacher, teacher.attention_points, figure=0.0))
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as out:
        trainer = make_trainer(Path(out), 1, Machine(precision=precision), callbacks=[watch])
        trainer.fit(module, task.train_loader(BATCH))
    return watch.seconds_a_step


class Stopwatch(Callback):
    """Times the steps after the first few, with what Lightning does between them."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when the step was done, on the device too for the two that count."""
        if batch_idx == WARM_UP - 1 or trainer.is_last_batch:
            wait(pl_module.device)
        self._marks.append(time.perf_counter())

    @property
    def seconds_a_step(self) -> float:
        """Mean over the measured steps."""
        return (self._marks[-1] - self._marks[WARM_UP - 1]) / (len(self._marks) - WARM_UP)


def plain(student: Architecture, task: Task) -> float:
    """Seconds of a step in a loop as most scripts write it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, teacher = (one.to(device) for one in networks(student))
    teacher.eval()
    points = network.attention_points
    optimiser = torch.optim.SGD(network.train().parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    data = OneByOne(task)
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=min(4, os.cpu_count() or 1))
    marks = []
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        with torch.no_grad(), outputs(teacher, points) as wanted:
            teacher(images)
        with outputs(network, points) as found:
            logits = network(images)
        loss = F.cross_entropy(logits, labels)
        for one, other in zip(found, wanted, strict=True):
            loss = loss + 1000 * (attention(one) - attention(other)).square().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        loss.item(), (logits.argmax(1) == labels).float().mean().item()  # the figures on the progress bar
        marks.append(time.perf_counter())
    return (marks[-1] - marks[WARM_UP - 1]) / (len(marks) - WARM_UP)


class OneByOne(Dataset[tuple[Tensor, int]]):
    """The task's training images, each augmented for itself."""

    def __init__(self, task: Task) -> None:
        images, labels = zip(*(batch for batch in task.train_loader(BATCH)), strict=True)
        self._images = torch.cat(images).permute(0, 2, 3, 1).numpy()
        self._labels = torch.cat(labels).tolist()
        steps = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self._augment = transforms.Compose([transforms.ToPILImage(), *steps, transforms.Normalize(MEAN, STD), cut_out])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._augment(self._images[index]), self._labels[index]


def cut_out(image: Tensor) -> Tensor:
    """A square of 16 x 16 becomes 0."""
    row, column = torch.randint(32, (2,)).tolist()
    image[:, max(0, row - 8) : row + 8, max(0, column - 8) : column + 8] = 0
    return image


def attention(activation: Tensor) -> Tensor:
    """Normalised attention map."""
    return F.normalize(activation.square().mean(1).flatten(1))


@contextmanager
def outputs(network: nn.Module, points: tuple[str, ...]) -> Iterator[list[Tensor]]:
    """What the modules at ``points`` give, by hooks."""
    found: list[Tensor] = []
    modules = [network.get_submodule(point) for point in points]
    handles = [module.register_forward_hook(lambda module, x, y: found.append(y)) for module in modules]
    yield found
    for handle in handles:
        handle.remove()


def section(seconds: dict[str, list[float]], steps: int) -> str:
    """The results on this device, in Markdown."""
    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else processor()
    plainly = statistics.mean(next(iter(seconds.values())))
    lines = [
        f"## {'GPU' if gpu else 'CPU'}",
        "",
        f"{name}; PyTorch {torch.__version__}, Python {platform.python_version()}; {steps} steps of each way for each "
        f"of {len(next(iter(seconds.values())))} students, in turns; load at the end {os.getloadavg()[0]:.1f}.",
        "",
        "| way | ms a step, mean (students apart) | images/s | times the plain loop | an epoch of 50,000 images |",
        "|---|---|---|---|---|",
    ]
    for way, found in seconds.items():
        mean, apart = statistics.mean(found), ", ".join(f"{1000 * one:.0f}" for one in found)
        cells = (
            f"{1000 * mean:.1f} ({apart})",
            f"{BATCH / mean:.0f}",
            f"{plainly / mean:.2f}",
            f"{EPOCH / BATCH * mean:.0f} s",
        )
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

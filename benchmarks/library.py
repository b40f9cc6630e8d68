"""Do a library's choice and a library's weights make better students? Same budgets, same epochs, same recipe.

- choices: the exact optimum of the library's errors, or of their logarithms, over all its candidates, and over the
  paper's alone; Fisher potential's best of 200, Fisher potential's and MACs' together, and one random architecture, of
  the paper's candidates; and, not of this project, Torch-Pruning's networks;
- weights: warm ones, those of the library or, of a pruned network, the teacher's; and fresh ones;
- training: logit distillation from the teacher, SGD, a cosine that falls from step to step, each of the given rates.

Resumable: what was stopped goes on where it was, and OUT/library.md is written after each student with what there is.
It says what was run, and on what. ``--publish`` writes it to benchmarks/results, too.

    python benchmarks/library.py --out library_study                                   # digits, a quarter of an hour
    python -m trial.teacher --space search_spaces.wide_resnet:WideResNetSpace --space-arg depth=16 width=2 \
        --data cifar10 --data-root DIR --data-option augment=crop+flip --epochs 18 --precision bf16-mixed --out teacher
    python benchmarks/library.py --out library_cifar10 --data cifar10 --data-root DIR --data-option augment=crop+flip \
        --depth 16 --width 2 --image-size 32 --in-channels 3 --teacher teacher/weights.pt --epochs 1 3 10 30 --seeds 3 \
        --precision bf16                                                               # a day on one core
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import pruned  # noqa: E402
from benchmarks.library_table import Result, table  # noqa: E402
from benchmarks.machine import processor  # noqa: E402
from nni_blockswap.architecture import Architecture  # noqa: E402
from nni_blockswap.blocks.site import find_family  # noqa: E402
from nni_blockswap.blocks.substitutes.narrowed import NARROWED, WIDTHS  # noqa: E402
from nni_blockswap.blocks.weights import seeded  # noqa: E402
from nni_blockswap.cost.resources.timing import interleaved  # noqa: E402
from nni_blockswap.files import read_json, write_json, write_text  # noqa: E402
from nni_blockswap.key_values import key_values  # noqa: E402
from nni_blockswap.library.assembling import assemble  # noqa: E402
from nni_blockswap.library.building import build  # noqa: E402
from nni_blockswap.library.library import Library  # noqa: E402
from nni_blockswap.library.school import Progress  # noqa: E402
from nni_blockswap.library.settings import LibrarySettings  # noqa: E402
from nni_blockswap.searching import SearchSettings, search  # noqa: E402
from nni_blockswap.spaces import cost_table  # noqa: E402
from nni_blockswap.tasks import make_task  # noqa: E402
from nni_blockswap.training import checkpoints, teachers  # noqa: E402
from nni_blockswap.training.classification import ImageTraining, Teacher  # noqa: E402
from nni_blockswap.training.machine import Machine  # noqa: E402
from nni_blockswap.training.program import quietly  # noqa: E402
from nni_blockswap.training.recipe import Recipe  # noqa: E402
from nni_blockswap.training.running import evaluate, fit  # noqa: E402
from nni_blockswap.training.unwrapping import weights_of  # noqa: E402
from trial import teacher  # noqa: E402

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
SEARCHED = {
    "library": {"proxy": "library", "samples": 1},
    "library, logarithms": {"proxy": "library_log", "samples": 1},
    "library, paper's candidates": {"proxy": "library", "samples": 1},
    "Fisher, best of 200": {"proxy": "fisher", "samples": 200},
    "Fisher and MACs, best of 200": {"proxy": "fisher+macs", "samples": 200},
    "random": {"proxy": "fisher", "samples": 1},
}
"""Choices of this project: settings of the search."""

OF_ALL = ("library", "library, logarithms")
"""Those that choose among all candidates, not the paper's alone."""

CHOICES = (*SEARCHED, *(f"Torch-Pruning, {variant}" for variant in pruned.VARIANTS))
STARTS = ("warm", "fresh")
BATCHES = (1, 64)
"""Images at once, whose latency is measured on one core."""


def main() -> None:
    """Teacher, library, choices, students; a table after each student."""
    with quietly():
        run(parser().parse_args())


def run(given: argparse.Namespace) -> None:
    """All that is asked for and not there yet."""
    study = Study(given)
    for seed in range(given.seeds):
        for epochs in given.epochs:
            for budget in given.budgets:
                for choice in given.choices:
                    for start in given.starts:
                        for rate in given.warm_lr if start == "warm" else (given.lr,):
                            if start == "warm" or choice in SEARCHED:
                                study.train(Result(budget, choice, start, epochs, rate, seed))
                                study.write()
    study.time()
    study.write()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    command.add_argument("--out", required=True, type=Path)
    command.add_argument("--data", default="digits")
    command.add_argument("--data-root")
    command.add_argument("--data-option", action="append", default=[])
    for name, default in (("depth", 16), ("width", 1), ("image-size", 16), ("in-channels", 1)):
        command.add_argument(f"--{name}", type=int, default=default)
    command.add_argument("--teacher", type=Path, help="a checkpoint; without it one is trained")
    command.add_argument("--teacher-epochs", type=int, default=30)
    command.add_argument("--budgets", nargs="+", default=["params=35%,macs=35%", "params=15%,macs=15%", "35%", "15%"])
    command.add_argument("--choices", nargs="+", default=list(CHOICES), choices=CHOICES)
    command.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    command.add_argument("--steps", type=int, default=160)
    command.add_argument("--epochs", nargs="+", type=int, default=[1, 3])
    command.add_argument("--seeds", type=int, default=1)
    command.add_argument("--lr", type=float, default=0.1, help="from fresh weights")
    command.add_argument(
        "--warm-lr", type=float, nargs="+", default=[0.01, 0.03, 0.1], help="from warm ones; the better shows"
    )
    command.add_argument("--precision", default="float32", choices=("float32", "bf16"), help="of library and students")
    command.add_argument("--publish", action="store_true", help="write benchmarks/results, too")
    return command


class Study:
    """What is kept in ``--out``, and the table of it."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.out = given, Path(given.out)
        self.space_args = {"depth": given.depth, "width": given.width, "image_size": given.image_size,
                           "in_channels": given.in_channels, "extra": list(WIDTHS)}  # fmt: skip
        self.data = {"data": given.data, "data_root": given.data_root,
                     "data_options": key_values(given.data_option, "--data-option")}  # fmt: skip
        self.task = make_task(given.data, given.data_root, **self.data["data_options"])
        self.machine = Machine(precision="bf16-mixed" if given.precision == "bf16" else "32-true")
        self.recipe = Recipe(beta=0.0, kd=1.0, schedule="cosine_steps")
        self.weights = self._teacher()
        self.library, self.seconds = self._library()
        self.costs = cost_table(SPACE, self.space_args)
        self.original = Architecture.original(SPACE, self.space_args)

    def _teacher(self) -> Path:
        if self.given.teacher is not None:
            return Path(self.given.teacher)
        kept = self.out / "teacher" / "weights.pt"
        if not kept.exists():
            command = ["--space", SPACE, *_flags("--space-arg", self.space_args), "--data", self.given.data]
            command += [*(["--data-root", self.given.data_root] if self.given.data_root else []),
                        *_flags("--data-option", self.data["data_options"])]  # fmt: skip
            command += ["--epochs", str(self.given.teacher_epochs), "--teacher-dir", str(self.out / "teachers")]
            teachers.run(teacher.parser().parse_args([*command, "--out", str(kept.parent)]))
        return kept

    def _library(self) -> tuple[Library, float]:
        """The library, and the seconds that it took, over all parts of a run that was stopped."""
        folder, began = self.out / "library", time.monotonic()
        settings = LibrarySettings(
            space=SPACE, space_args=self.space_args, teacher=str(self.weights), steps=self.given.steps,
            precision=self.given.precision, **self.data,
        )  # fmt: skip
        timed = folder / "seconds.json"
        before = read_json(timed) if timed.exists() else 0.0

        def note(progress: Progress) -> None:
            write_json(timed, before + time.monotonic() - began)

        return build(settings, folder, note), read_json(timed)

    @cached_property
    def teacher(self) -> nn.Module:
        """The trained original, in evaluation mode."""
        network = assemble(self.original, self.state, self.library)
        return network.requires_grad_(False)

    @cached_property
    def state(self) -> Any:
        """The teacher's weights."""
        return weights_of(checkpoints.read(self.weights))

    def choose(self, budget: str, choice: str) -> Architecture:
        """The architecture of a choice, found once."""
        home = self.out / "chosen" / _folder(budget) / _folder(choice)
        if not (home / "best.json").exists():
            settings = dict[str, Any](space=SPACE, space_args=self.space_args, budgets=[budget], **self.data)
            settings |= SEARCHED[choice]
            if choice not in OF_ALL:
                settings["candidates"] = {
                    label: [name for name in names if find_family(name) is not NARROWED]
                    for label, names in zip(self.costs.labels, self.costs.candidates, strict=True)
                }
            if choice.startswith("library"):
                settings["library"] = str(self.library.folder)
            search(SearchSettings(**settings), home)
        return Architecture.load(home / "best.json")

    def network(self, budget: str, choice: str, start: str, seed: int = 0) -> nn.Module:
        """A student as its training begins."""
        if choice not in SEARCHED:
            limits = {name: float(share.rstrip("%")) / 100 for name, share in _limits(budget).items()}
            images, labels = self.task.minibatch(128, seed=0, augment=False)
            variant = choice.removeprefix("Torch-Pruning, ")
            return pruned.narrowed(self.teacher, variant, limits, images, labels)
        architecture = self.choose(budget, choice)
        if start == "warm":
            return assemble(architecture, self.state, self.library)
        with seeded(seed):
            built: nn.Module = architecture.build()
        return built

    def begun(self, budget: str, choice: str) -> dict[str, float]:
        """The warm student as it is: its error in percent, its shares of parameters and MACs. Kept."""
        path = self.out / "begun" / _folder(budget) / f"{_folder(choice)}.json"
        if not path.exists():
            network = self.network(budget, choice, "warm")
            images, _ = self.task.minibatch(1, seed=0, augment=False)
            taken, whole = pruned.costs(network.eval(), images), pruned.costs(self.teacher, images)
            shares = {name: taken[name] / whole[name] for name in whole}
            write_json(path, {"error": self._error(network), **shares})
        return dict(read_json(path))

    def _error(self, network: nn.Module) -> float:
        return 100 * (1 - evaluate(ImageTraining(network, self.task, self.recipe), self.machine))

    def train(self, wanted: Result) -> None:
        """One student, unless it was trained."""
        folder = self._home(wanted)
        if (folder / "result.json").exists():
            return
        began = time.monotonic()
        network = self.network(wanted.budget, wanted.choice, wanted.start, wanted.seed)
        network.requires_grad_(True)
        recipe = replace(self.recipe, epochs=wanted.epochs, lr=wanted.rate, seed=wanted.seed)
        module = ImageTraining(network, self.task, recipe, Teacher(self.teacher, (), 0.0))
        fit(module, folder, self.machine)
        error = 100 * (1 - module.figures[self.task.metric.key])
        write_json(folder / "result.json", {"error": error, "seconds": time.monotonic() - began})
        print(f"{wanted}: {error:.2f} % error, {time.monotonic() - began:.0f} s", flush=True)

    def _home(self, wanted: Result) -> Path:
        run = f"{wanted.start}-{wanted.epochs}-{wanted.rate:g}-{wanted.seed}"
        return self.out / "students" / _folder(wanted.budget) / _folder(wanted.choice) / run

    def time(self) -> None:
        """Milliseconds of all networks on one core, side by side."""
        torch.set_num_threads(1)
        pairs = dict.fromkeys((one.budget, one.choice) for one in self._trained())
        networks = {"teacher": self.teacher} | {
            f"{budget}/{choice}": self.network(budget, choice, "warm").eval().requires_grad_(False)
            for budget, choice in pairs
        }
        found: dict[str, dict[str, float]] = {name: {} for name in networks}
        for batch in BATCHES:
            shape = (batch, self.given.in_channels, self.given.image_size, self.given.image_size)
            images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
            runs = {name: partial(network, images) for name, network in networks.items()}
            for name, times in interleaved(runs, 30, torch.device("cpu")).items():
                found[name][str(batch)] = 1000 * sorted(times)[len(times) // 2]
        write_json(self.out / "milliseconds.json", found)

    def write(self) -> None:
        """The table of what there is."""
        results = {one: read_json(self._home(one) / "result.json")["error"] for one in self._trained()}
        begun = {pair: self.begun(*pair) for pair in {(one.budget, one.choice) for one in results}}
        timed = self.out / "milliseconds.json"
        text = table(results, begun, read_json(timed) if timed.exists() else {})
        end = f"Machine: {processor()}, PyTorch {torch.__version__}. Written by `benchmarks/library.py`.\n"
        page = "\n".join(["# What a library brings", "", self._about(), text, "", end])
        write_text(self.out / "library.md", page)
        if self.given.publish:
            name = "library.md" if self.given.data == "cifar10" else f"library_{self.given.data}.md"
            write_text(ROOT / "benchmarks" / "results" / name, page)

    def _trained(self) -> list[Result]:
        """All whose results are kept, in the order of the command line's names."""
        return [
            Result(budget, choice, start, int(epochs), float(rate), int(seed))
            for budget in self.given.budgets
            for choice in CHOICES
            for path in sorted((self.out / "students" / _folder(budget) / _folder(choice)).glob("*/result.json"))
            for start, epochs, rate, seed in [path.parent.name.split("-")]
        ]

    def _about(self) -> str:
        options = ", ".join(f"{name} {value}" for name, value in self.data["data_options"].items())
        path = self.out / "teacher_error.json"
        if not path.exists():
            write_json(path, self._error(self.teacher))
        candidates = sum(len(one) - 1 for one in self.library.errors.values())
        return (
            f"WRN-{self.given.depth}-{self.given.width} on {self.given.data}{f' ({options})' if options else ''}: "
            f"{self.original.spelled_costs}; teacher's error {read_json(path):.1f} %. Library: {candidates} "
            f"candidates, {self.given.steps} steps of 96 images each, {self.given.precision}, {self.seconds:.0f} s on "
            "cores that others used, too. Students: logit distillation, cosine from step to step, rate "
            f"{self.given.lr} from fresh weights and {' or '.join(map(str, self.given.warm_lr))} from warm ones, for "
            "all alike."
        )


def _limits(budget: str) -> dict[str, str]:
    """Shares by resource: "15%" is one of the parameters."""
    named = [part.rpartition("=") for part in budget.split(",")]
    return {resource or "params": share for resource, _, share in named}


def _folder(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.replace("%", "pct"))


def _flags(option: str, values: dict[str, Any]) -> Sequence[str]:
    return [part for name, value in values.items() for part in (option, f"{name}={json.dumps(value)}")]


if __name__ == "__main__":
    main()

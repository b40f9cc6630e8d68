"""Do a library's choice and a library's weights make better students? Same budgets, same epochs, same recipe.

- choices: the exact optimum of the library's errors over all its candidates, and over the paper's alone; Fisher
  potential's best of 200 and one random architecture, both of the paper's candidates;
- weights: fresh ones, and those of the library;
- training: logit distillation from the teacher, SGD with a cosine, the rate given for each kind of start.

Runs in one process, a trial a student, in a folder that keeps all of it: what was stopped goes on where it was, and
benchmarks/results/library.md is written after each student with what there is. It says what was run, and on what.

    python benchmarks/library.py --out library_study                                   # digits, a quarter of an hour
    python benchmarks/library.py --out library_cifar --data cifar10 --data-root data/cifar10 --depth 16 --width 2 \
        --image-size 32 --in-channels 3 --teacher teacher/weights.pt --epochs 1 10 30  # hours
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor  # noqa: E402
from nni_blockswap.architecture import Architecture, cost_table  # noqa: E402
from nni_blockswap.blocks.site import find_family  # noqa: E402
from nni_blockswap.blocks.substitutes.narrowed import NARROWED, WIDTHS  # noqa: E402
from nni_blockswap.files import read_json, write_json, write_text  # noqa: E402
from nni_blockswap.key_values import key_values  # noqa: E402
from nni_blockswap.library.assembling import assemble  # noqa: E402
from nni_blockswap.library.building import Progress, build  # noqa: E402
from nni_blockswap.library.library import Library  # noqa: E402
from nni_blockswap.library.settings import LibrarySettings  # noqa: E402
from nni_blockswap.searching import SearchSettings, search  # noqa: E402
from nni_blockswap.tasks import make_task  # noqa: E402
from nni_blockswap.training import checkpoints, distillation_trial, teachers  # noqa: E402
from nni_blockswap.training.classification import ImageTraining  # noqa: E402
from nni_blockswap.training.machine import Machine  # noqa: E402
from nni_blockswap.training.recipe import Recipe  # noqa: E402
from nni_blockswap.training.running import evaluate  # noqa: E402
from nni_blockswap.training.unwrapping import weights_of  # noqa: E402
from trial import distill, teacher  # noqa: E402

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
RESULTS = ROOT / "benchmarks" / "results" / "library.md"
CHOICES = ("library", "library, paper's candidates", "Fisher, best of 200", "random")
STARTS = ("library", "fresh")


def main() -> None:
    """Teacher, library, choices, students; a table after each student."""
    given = parser().parse_args()
    study = Study(given)
    for budget in given.budgets:
        for choice in CHOICES:
            study.choose(budget, choice)
    study.write()
    for seed in range(given.seeds):
        for epochs in given.epochs:
            for budget in given.budgets:
                for choice in CHOICES:
                    for start in STARTS:
                        study.train(budget, choice, start, epochs, seed)
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
    command.add_argument("--budgets", nargs="+", default=["35%", "params=35%,macs=35%", "15%", "params=15%,macs=15%"])
    command.add_argument("--steps", type=int, default=160)
    command.add_argument("--epochs", nargs="+", type=int, default=[1, 4])
    command.add_argument("--seeds", type=int, default=1)
    command.add_argument("--lr", type=float, default=0.1, help="from fresh weights")
    command.add_argument("--warm-lr", type=float, default=0.03, help="from the library's")
    command.add_argument("--precision", default="float32", help="of the library: float32 or bf16")
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
        self.teacher = self._teacher()
        self.library, self.seconds = self._library()
        self.recipe, self.machine = Recipe(), Machine("1", "auto", 0, None)

    def _teacher(self) -> Path:
        if self.given.teacher is not None:
            return Path(self.given.teacher)
        kept = self.out / "teacher" / "weights.pt"
        if not kept.exists():
            command = ["--space", SPACE, *self._flags("--space-arg", self.space_args), *self._data_flags()]
            command += ["--epochs", str(self.given.teacher_epochs), "--teacher-dir", str(self.out / "teachers")]
            teachers.run(teacher.parser().parse_args([*command, "--out", str(kept.parent)]))
        return kept

    def _library(self) -> tuple[Library, float]:
        """The library, and the seconds that it took, over all parts of a run that was stopped."""
        folder, began = self.out / "library", time.monotonic()
        settings = LibrarySettings(
            space=SPACE, space_args=self.space_args, teacher=str(self.teacher), steps=self.given.steps,
            precision=self.given.precision, **self.data,
        )  # fmt: skip
        timed = folder / "seconds.json"
        before = read_json(timed) if timed.exists() else 0.0

        def note(progress: Progress) -> None:
            write_json(timed, before + time.monotonic() - began)

        return build(settings, folder, note), read_json(timed)

    def choose(self, budget: str, choice: str) -> Architecture:
        """The architecture of a choice, found once."""
        home = self.out / "chosen" / budget / choice
        if not (home / "best.json").exists():
            table = cost_table(SPACE, self.space_args)
            papers = {
                label: [name for name in names if find_family(name) is not NARROWED]
                for label, names in zip(table.labels, table.candidates, strict=True)
            }
            plain: dict[str, Any] = {
                "space": SPACE,
                "space_args": self.space_args,
                "budgets": [budget],
                "at_most": True,
                **self.data,
            }
            if choice != CHOICES[0]:
                plain["candidates"] = papers
            if choice.startswith("library"):
                plain |= {"proxy": "library", "library": str(self.library.folder), "samples": 5}
            else:
                plain["samples"] = 1 if choice == "random" else 200
            search(SearchSettings(**plain), home)
        return Architecture.load(home / "best.json")

    def untrained(self, architecture: Architecture) -> float:
        """Error in percent of the assembled student, kept."""
        path = self.out / "assembled" / f"{architecture.id}.json"
        if not path.exists():
            state = weights_of(checkpoints.read(self.teacher))
            network = assemble(architecture, state, self.library)
            figure = evaluate(ImageTraining(network, self.task, self.recipe), self.machine)
            write_json(path, 100 * (1 - figure))
        return float(read_json(path))

    def train(self, budget: str, choice: str, start: str, epochs: int, seed: int) -> None:
        """One student, unless it was trained."""
        if self._result(budget, choice, start, epochs, seed).exists():
            return
        best = self.out / "chosen" / budget / choice / "best.json"
        folder = self._result(budget, choice, start, epochs, seed).parent
        warm = start == "library"
        init, rate = (f"library={self.library.folder}", self.given.warm_lr) if warm else ("fresh", self.given.lr)
        command = ["--architecture", str(best), "--teacher", str(self.teacher), "--init", init, "--lr", str(rate)]
        command += ["--beta", "0", "--kd", "1", "--epochs", str(epochs), "--seed", str(seed), "--out", str(folder)]
        distillation_trial.run(distill.parser().parse_args([*command, *self._data_flags()]))

    def _result(self, budget: str, choice: str, start: str, epochs: int, seed: int) -> Path:
        return self.out / "students" / budget / choice / f"{start}-{epochs}-{seed}" / "result.json"

    def write(self) -> None:
        """The table of what there is."""
        original = Architecture.from_choices(SPACE, ["S"] * len(self.library.errors), self.space_args)
        about = (
            f"WRN-{self.given.depth}-{self.given.width} on {self.given.data}{self._options()} "
            f"({original.spelled_costs}); teacher's error {self.untrained(original):.1f} %. Library: "
            f"{sum(len(one) - 1 for one in self.library.errors.values())} candidates, {self.given.steps} steps of "
            f"96 images each, {self.given.precision}, {self.seconds:.0f} s on a machine that others used, too. "
            f"Students: logit distillation, rate {self.given.lr} from fresh weights and {self.given.warm_lr} from the "
            "library's.\n\nError on the validation set in %, after so many epochs; several seeds: mean and "
            "half of their range. 0: assembled from the library, not trained.\n"
        )
        cells = [f"{start}, {epochs}" for epochs in self.given.epochs for start in STARTS]
        lines = [["budget", "choice", "parameters", "MACs", "0", *cells], ["---"] * (5 + len(cells))]
        lines += list(self._rows(original))
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        end = f"Machine: {processor()}, PyTorch {torch.__version__}. Written by `benchmarks/library.py`.\n"
        text = "\n".join(["# What a library brings", "", about, table, "", end])
        write_text(self.out / "library.md", text)
        if self.given.data == "digits":
            write_text(RESULTS, text)

    def _rows(self, original: Architecture) -> Iterator[list[str]]:
        for budget in self.given.budgets:
            for choice in CHOICES:
                one = self.choose(budget, choice)
                shares = [f"{100 * one.costs[name] / original.costs[name]:.1f} %" for name in ("params", "macs")]
                cells = [self._cell(budget, choice, start, epochs) for epochs in self.given.epochs for start in STARTS]
                yield [budget, choice, *shares, f"{self.untrained(one):.1f}", *cells]

    def _cell(self, budget: str, choice: str, start: str, epochs: int) -> str:
        paths = [self._result(budget, choice, start, epochs, seed) for seed in range(self.given.seeds)]
        errors = [100 * (1 - json.loads(path.read_text())["accuracy"]) for path in paths if path.exists()]
        if not errors:
            return ""
        spread = f" +- {(max(errors) - min(errors)) / 2:.1f}" if len(errors) > 1 else ""
        return f"{sum(errors) / len(errors):.1f}{spread}"

    def _options(self) -> str:
        options = self.data["data_options"]
        return f" ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else ""

    def _data_flags(self) -> list[str]:
        root = ["--data-root", self.given.data_root] if self.given.data_root else []
        return ["--data", self.given.data, *root, *self._flags("--data-option", self.data["data_options"])]

    @staticmethod
    def _flags(option: str, values: dict[str, Any]) -> Sequence[str]:
        return [part for name, value in values.items() for part in (option, f"{name}={json.dumps(value)}")]


if __name__ == "__main__":
    main()

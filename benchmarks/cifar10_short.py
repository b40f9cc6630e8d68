"""Section 5 of the paper, shortened to what two CPU cores do in an hour: WRN-16-2 on a subset of CIFAR-10.

Trains one teacher, then at 400K parameters: BlockSwap's student, a random architecture and the single type that comes
closest to the budget, G(2) in every block, for each seed. The work folder keeps all of it; the same command goes on
where it was stopped, and writes the results anew after each trial.

    nice python benchmarks/cifar10_short.py --data-root data/cifar10
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from nni_blockswap.architecture import Architecture  # noqa: E402
from nni_blockswap.experiment.students import identity  # noqa: E402
from nni_blockswap.files import read_json, write_json, write_text  # noqa: E402
from nni_blockswap.searching import SearchSettings  # noqa: E402
from nni_blockswap.studies.comparison import Comparison, contestants  # noqa: E402
from nni_blockswap.studies.report import report  # noqa: E402
from nni_blockswap.studies.trials import points, read_trials  # noqa: E402

SPACE, ARGUMENTS = "search_spaces.wide_resnet:WideResNetSpace", {"depth": 16, "width": 2}
TRAINING_IMAGES, TEST_IMAGES = 5000, 2000
BUDGET, TOLERANCE, SINGLE = "400K", 0.025, "G(2)"
TEACHER_EPOCHS, EPOCHS, SAMPLES = 15, 10, 300

RECIPE = (
    "--data cifar10 --data-option augment=crop+flip --batch-size 64 --beta 100 --precision bf16-mixed "
    f"--data-option limit={TRAINING_IMAGES} --data-option held_out={TEST_IMAGES}"
).split()
"""Beta is a tenth of the paper's, and Cutout is left out: a few hundred steps are too few for them."""


def main() -> None:
    """Search, train, write the table."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--data-root", required=True, type=Path, metavar="DIR", help="folder of CIFAR-10")
    command.add_argument("--work", type=Path, default=ROOT / "experiments_out/cifar10_short", metavar="DIR")
    command.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/cifar10_short.md", metavar="FILE")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--jobs", type=int, default=2, help="trials side by side, a core each")
    given = command.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    trials = find_trials(given.work, given.data_root, given.seeds)
    teacher = train_teacher(given.work, given.data_root)
    with ThreadPoolExecutor(given.jobs) as pool:
        for done in pool.map(lambda trial: train(trial, teacher, given.work, given.data_root), trials):
            print(f"done: {done}", flush=True)
            publish(given.work, len(trials), given.results)


def find_trials(work: Path, data_root: Path, seeds: int) -> list[dict[str, Any]]:
    """Parameters of the trials; the search's winner among them."""
    kept = work / f"trials-{seeds}.json"
    if not kept.exists():
        settings = SearchSettings(
            space=SPACE,
            space_args=ARGUMENTS,
            data="cifar10",
            data_root=str(data_root),
            data_options={"augment": "crop+flip", "limit": TRAINING_IMAGES},
            budgets=[BUDGET],
            tolerance=TOLERANCE,
            samples=SAMPLES,
        )
        comparison = Comparison(methods=("blockswap", "random"), single=(SINGLE,), seeds=seeds)
        write_json(kept, contestants(comparison, settings, work / "search"))
    found: list[dict[str, Any]] = read_json(kept)
    return found


def train_teacher(work: Path, data_root: Path) -> Path:
    """The weights of the one teacher."""
    arguments = [f"{name}={value}" for name, value in ARGUMENTS.items()]
    folder = work / "teachers"
    space = ["--space", SPACE, "--space-arg", *arguments, "--teacher-dir", folder]
    run("trial.teacher", [*space, "--epochs", TEACHER_EPOCHS, "--data-root", data_root, *RECIPE], work / "teacher.log")
    (weights,) = folder.glob("*.pt")
    return weights


def train(trial: dict[str, Any], teacher: Path, work: Path, data_root: Path) -> str:
    """Train one student, unless it is trained already; returns its name."""
    name = identity(trial)
    out = work / "trials" / name.replace(" ", "_")
    if not (out / "result.json").exists():
        choices = {label: choice for label, choice in trial.items() if label.startswith("block_")}
        asked = Architecture.from_choices(trial["space"], choices, trial["space_args"])
        asked.save(out / "asked.json")
        options: list[object] = ["--architecture", out / "asked.json", "--out", out, "--teacher", teacher]
        options += ["--epochs", EPOCHS, "--data-root", data_root, *RECIPE]
        options += ["--method", trial["method"], "--variant", trial["variant"], "--seed", trial["seed"]]
        run("trial.distill", options, out / "log")
    return name


def run(module: str, options: Iterable[object], log: Path) -> None:
    """Run a trial's module on one core."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        subprocess.run(
            [sys.executable, "-m", module, *map(str, options)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=True,
        )


def publish(work: Path, total: int, results: Path) -> None:
    """Write the table of what is trained so far."""
    table = report([work / "trials"], work / "report", latency_batch=None)
    found = read_trials([work / "trials"])
    errors = [
        f"* {point.method} {point.variant}: {', '.join(f'{one.error:.2f}' for one in point.trials)}"
        for point in points(found)
    ]
    text = f"""# A shortened CIFAR-10 experiment

`benchmarks/cifar10_short.py` on {os.cpu_count()} CPU cores. {len(found)} of {total} trials.

* Teacher: WRN-16-2, {TEACHER_EPOCHS} epochs on {TRAINING_IMAGES:,} images of CIFAR-10; the same for all students.
* Students: {EPOCHS} epochs on the same images by attention transfer (beta 100, batch 64, learning rate 0.1 falling as a
  cosine, crop and flip), within {100 * TOLERANCE} % of {BUDGET} parameters.
* `blockswap` is the best of {SAMPLES} by Fisher potential (one minibatch of 128, one initialisation), trained once a
  seed, as `single` is; `random` is another architecture for each seed.
* Error in percent on {TEST_IMAGES:,} test images, whose own sampling error is about one point.

{table}

Each trial:

{chr(10).join(errors)}

The paper trains for 200 epochs on ten times the images: these figures say nothing of the error that it would end with.
"""
    write_text(results, text)


if __name__ == "__main__":
    main()

"""Train a student by attention transfer: ``python -m trial.distill``.

Under NNI the architecture comes from the tuner and everything is written to the trial's output folder. Outside NNI:

    python -m trial.distill --architecture best.json --data cifar10 --data-root DIR --out DIR

The same command in the same folder goes on where a killed run stopped.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks import seeded
from nni_blockswap.tasks import make_task
from trial import options
from trial.nni_link import NNILink, is_first_process
from trial.reporting import AttentionPictures, Description, EpochReport
from trial.running import fit, in_terminal, main, say
from trial.student import add_student, begin, claim, publish
from trial.teachers import TeacherPlan, find_teacher
from trial.training import ImageTraining, check_fit, loaders


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser("python -m trial.distill", description=__doc__.partition("\n")[0])
    add_student(command)
    command.add_argument(
        "--teacher", metavar="WHICH", help="a checkpoint, or torchvision:NAME; without it one is trained once and kept"
    )
    command.add_argument("--teacher-epochs", type=int, help="epochs of a teacher trained here; default: --epochs")
    options.add_teacher(command)
    options.add_space(command)
    options.add_data(command)
    options.add_recipe(command)
    options.add_machine(command)
    return command


def run() -> None:
    """Train one student."""
    given = parser().parse_args()
    architecture, out, link = begin(given)
    distill(architecture, given, out, link)


def distill(architecture: Architecture, given: argparse.Namespace, out: Path, link: NNILink | None) -> None:
    """Train ``architecture`` and write its results to ``out``."""
    recipe, machine = options.recipe_from(given), options.machine_from(given)
    data_options = options.pairs(given.data_option, "--data-option")
    if is_first_process():
        settings = {"data": given.data, "data_options": data_options, "teacher": given.teacher, **asdict(recipe)}
        claim(out, architecture, settings)
    say(f"student {architecture.id}: {architecture.params:,} parameters, {architecture.macs:,} MACs.")
    task = make_task(given.data, given.data_root, **data_options)
    with seeded(recipe.seed):
        student: Any = architecture.build()
    check_fit(student, student.input_size, task)
    plan = TeacherPlan(given.teacher, Path(given.teacher_dir), recipe.of_teacher(given.teacher_epochs))
    teacher = find_teacher(architecture, task, data_options, plan, machine) if recipe.beta else None
    module = ImageTraining(student, task, recipe, teacher)
    report = EpochReport(link.report_epoch if link else None, "val/accuracy", None if in_terminal() else say)
    finished = fit(
        module,
        loaders(task, machine.workers),
        out,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        machine=machine,
        monitor="val/accuracy",
        clip=recipe.clip,
        callbacks=[report, Description(architecture, teacher), AttentionPictures()],
    )
    if finished.trainer.is_global_zero:
        say(f"done: accuracy {module.accuracy:.2%} (best epoch {finished.best:.2%}); results in '{out}'.")
        figures = {"accuracy": module.accuracy, "best_accuracy": finished.best}
        if teacher is not None:
            figures["teacher_accuracy"] = teacher.accuracy
        publish(architecture, student, finished, out, link, default=module.accuracy, figures=figures)


if __name__ == "__main__":
    main("trial.distill", run)

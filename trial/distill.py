"""Train a student by attention transfer: ``python -m trial.distill``.

Under NNI the architecture comes from the tuner and everything is written to the trial's output folder. Outside NNI:

    python -m trial.distill --architecture best.json --data cifar10 --data-root DIR --out DIR

The same command in the same folder goes on where a killed run stopped.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.space import seeded
from nni_blockswap.tasks import make_task
from nni_blockswap.training import options
from nni_blockswap.training import pruning as sparse
from nni_blockswap.training.classification import ImageTraining, check_attention, check_fit, loaders
from nni_blockswap.training.nni_link import NNILink, is_first_process
from nni_blockswap.training.reporting import AttentionPictures, Description, EpochReport
from nni_blockswap.training.running import fit, in_terminal, main, say
from nni_blockswap.training.student import COMPARISON, add_student, begin, claim, publish, released_on_failure
from nni_blockswap.training.teachers import TeacherPlan, find_teacher, original_of


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser("python -m trial.distill", description=__doc__.partition("\n")[0])
    add_student(command)
    command.add_argument(
        "--teacher", metavar="WHICH", help="a checkpoint, or torchvision:NAME; without it one is trained once and kept"
    )
    command.add_argument("--teacher-epochs", type=int, help="epochs of a teacher trained here; default: --epochs")
    options.add_teacher(command)
    add_comparison(command)
    options.add_space(command)
    options.add_data(command)
    options.add_recipe(command)
    options.add_machine(command)
    return command


def add_comparison(command: argparse.ArgumentParser) -> None:
    """Options for networks that BlockSwap is compared to; under NNI its tuner sets them."""
    compared = command.add_argument_group("comparison")
    compared.add_argument(
        "--method", help=f"what the result is called in a report; {' and '.join(sparse.METHODS)} prune the original"
    )
    compared.add_argument("--variant", default="", help="the method's budget or setting, for the report")
    compared.add_argument("--nonzero", type=int, metavar="N", help="parameters that pruning keeps")


def run() -> None:
    """Train one student."""
    given = parser().parse_args()
    architecture, out, link = begin(given)
    with released_on_failure(out):
        distill(architecture, given, out, link)


def distill(architecture: Architecture, given: argparse.Namespace, out: Path, link: NNILink | None) -> None:
    """Train ``architecture`` and write its results to ``out``."""
    recipe, machine = options.recipe_from(given), options.machine_from(given)
    data_options = options.pairs(given.data_option, "--data-option")
    if is_first_process():
        of_teacher = {"teacher": given.teacher, "teacher_epochs": given.teacher_epochs}
        claim(out, architecture, options.data_settings(given) | of_teacher | asdict(recipe) | _compared(given))
    say(f"student {architecture.id}: {architecture.params:,} parameters, {architecture.macs:,} MACs.")
    task = make_task(given.data, given.data_root, **data_options)
    with seeded(recipe.seed):
        student: Any = architecture.build()
    check_fit(architecture, task)
    if recipe.beta:
        check_attention(student)
    plan = TeacherPlan(given.teacher, Path(given.teacher_dir), recipe.of_teacher(given.teacher_epochs))
    teacher = None
    if recipe.beta or given.method == sparse.L1_PRUNING:
        teacher = find_teacher(original_of(given) or architecture, task, data_options, plan, machine)
    if given.method in sparse.METHODS:
        sparse.prune_student(student, given.method, given.nonzero, teacher.network if teacher else None, task, recipe)
    if given.method == sparse.L1_PRUNING:
        recipe = replace(recipe, lr=recipe.lr * sparse.FINE_TUNING)
    module = ImageTraining(student, task, recipe, teacher if recipe.beta else None)
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
        accuracy = module.figures["accuracy"]
        say(f"done: accuracy {accuracy:.2%} (best epoch {finished.best:.2%}); results in '{out}'.")
        figures = {**module.figures, "best_accuracy": finished.best, **_compared(given)}
        if teacher is not None:
            figures["teacher_accuracy"] = teacher.accuracy
        if given.method in sparse.METHODS:
            sparse.make_permanent(student)
            figures["params"] = given.nonzero
        publish(architecture, student, finished, out, link, default=accuracy, figures=figures)


def _compared(given: argparse.Namespace) -> dict[str, Any]:
    """What names this run among those it is compared to; nothing outside a comparison."""
    named = {name: getattr(given, name) for name in COMPARISON} if given.method else {}
    return {name: value for name, value in named.items() if value is not None}


if __name__ == "__main__":
    main("trial.distill", run)

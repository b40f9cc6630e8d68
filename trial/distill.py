"""Train a student by attention transfer: ``python -m trial.distill``.

Under NNI the architecture comes from the tuner and everything is written to the trial's output folder. Outside NNI:

    python -m trial.distill --architecture best.json --data cifar10 --data-root DIR --out DIR

The same command in the same folder goes on where a killed run stopped.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nni_blockswap import __version__
from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks import seeded
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.files import read_json, write_json
from nni_blockswap.tasks import make_task
from trial import checkpoints, options
from trial.nni_link import NNILink, is_first_process, under_nni
from trial.reporting import AttentionPictures, Description, EpochReport
from trial.running import Run, fit, in_terminal, main, say
from trial.teachers import TeacherPlan, find_teacher, plain_state
from trial.training import ImageTraining, check_fit, loaders

NOT_A_BLOCK = ("space", "space_args", "params", "macs", "score", "rank", "architecture_id")
"""What a tuner's parameters hold beside one substitute for each block label."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser("python -m trial.distill", description=__doc__.partition("\n")[0])
    command.add_argument("--architecture", metavar="FILE", help="a saved Architecture; not needed under NNI")
    command.add_argument("--out", metavar="DIR", help="where results go; under NNI the trial's output folder")
    command.add_argument(
        "--teacher", metavar="WHICH", help="a checkpoint, or torchvision:NAME; without it one is trained once and kept"
    )
    command.add_argument("--teacher-epochs", type=int, help="epochs of a teacher trained here; default: --epochs")
    options.add_teacher(command)
    options.add_space(command)
    options.add_recipe(command)
    return command


def architecture_from(parameters: Mapping[str, Any], given: argparse.Namespace) -> Architecture:
    """The architecture in a tuner's parameters; the space is theirs, or for NNI's own tuners the command line's."""
    space = parameters.get("space", given.space)
    if space is None:
        raise ConfigError("the tuner names no space; add --space (and --space-args) to the trial's command.")
    arguments = parameters.get("space_args", options.pairs(given.space_args, "--space-args"))
    choices = {label: name for label, name in parameters.items() if label not in NOT_A_BLOCK}
    found = Architecture.from_choices(space, choices, arguments)
    score = parameters.get("score")
    return found if score is None else found.scored(score, {"rank": parameters.get("rank")})


def run() -> None:
    """Train one student."""
    given = parser().parse_args()
    link = NNILink() if under_nni() and is_first_process() else None
    out = Path(given.out or os.environ.get("NNI_OUTPUT_DIR") or "")
    if out == Path():
        raise ConfigError("--out DIR says where results go.")
    if link is not None and given.architecture is None:
        architecture = architecture_from(link.parameters, given)
    elif not is_first_process():
        architecture = Architecture.load(out / "architecture.json")
    elif given.architecture is None:
        raise ConfigError("--architecture FILE says what to train; 'blockswap search' writes one.")
    else:
        architecture = Architecture.load(given.architecture)
    if link is not None:
        link.link_tensorboard()
    distill(architecture, given, out, link)


def distill(architecture: Architecture, given: argparse.Namespace, out: Path, link: NNILink | None) -> None:
    """Train ``architecture`` and write its results to ``out``."""
    recipe, machine = options.recipe_from(given), options.machine_from(given)
    data_options = options.pairs(given.data_option, "--data-option")
    if is_first_process():
        _claim(out, architecture, {"data": given.data, "data_options": data_options, **asdict(recipe)})
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
        _finish(architecture, module, finished, out, link)


def _claim(out: Path, architecture: Architecture, settings: dict[str, Any]) -> None:
    """Write down whose folder ``out`` is; refuse to mix two runs in it."""
    settings = {"architecture_id": architecture.id, **settings}
    kept = out / "settings.json"
    if kept.exists():
        other = [name for name, value in read_json(kept).items() if settings.get(name) != value]
        if other:
            raise StateError(f"'{out}' holds a run with another {', '.join(other)}; give this one a folder of its own.")
    write_json(kept, settings)
    architecture.save(out / "architecture.json")


def _finish(architecture: Architecture, module: ImageTraining, finished: Run, out: Path, link: NNILink | None) -> None:
    """Write weights and results, and report them."""
    checkpoints.save(plain_state(module.network), out / checkpoints.WEIGHTS)
    result: dict[str, float | int | str] = {
        "accuracy": module.accuracy,
        "best_accuracy": finished.best,
        "architecture_id": architecture.id,
        "params": architecture.params,
        "macs": architecture.macs,
        "epochs": finished.trainer.current_epoch,
        "seconds": round(finished.seconds, 1),
    }
    if module.teacher is not None:
        result["teacher_accuracy"] = module.teacher.accuracy
    if architecture.score is not None:
        result["score"] = architecture.score
    versions = {package: version(package) for package in ("torch", "pytorch-lightning", "nni")}
    write_json(out / "result.json", {**result, "versions": {"nni-blockswap": __version__, **versions}})
    say(f"done: accuracy {module.accuracy:.2%} (best epoch {finished.best:.2%}); results in '{out}'.")
    if link is not None:
        link.report_final({"default": module.accuracy, **result})


if __name__ == "__main__":
    main("trial.distill", run)

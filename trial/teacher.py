"""Train the teacher of a search space and keep it for its students: ``python -m trial.teacher``."""

import argparse
from pathlib import Path

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError
from nni_blockswap.tasks import make_task
from nni_blockswap.training import options
from nni_blockswap.training.running import main
from nni_blockswap.training.teachers import TeacherPlan, find_teacher, original_of


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser("python -m trial.teacher", description=__doc__)
    command.add_argument("--architecture", metavar="FILE", help="any saved Architecture of the space")
    options.add_teacher(command)
    options.add_space(command)
    options.add_data(command)
    options.add_recipe(command)
    options.add_machine(command)
    return command


def run() -> None:
    """Train one teacher, unless it is there already."""
    given = parser().parse_args()
    recipe, machine = options.recipe_from(given), options.machine_from(given)
    data_options = options.pairs(given.data_option, "--data-option")
    task = make_task(given.data, given.data_root, **data_options)
    plan = TeacherPlan(None, Path(given.teacher_dir), recipe.of_teacher(None))
    find_teacher(_architecture(given), task, data_options, plan, machine)


def _architecture(given: argparse.Namespace) -> Architecture:
    found = Architecture.load(given.architecture) if given.architecture is not None else original_of(given)
    if found is None:
        raise ConfigError("--space MODULE:CLASS or --architecture FILE says whose teacher to train.")
    return found


if __name__ == "__main__":
    main("trial.teacher", run)

"""Train the teacher of a search space or of a network of your own, and keep it: ``python -m trial.teacher``."""

import argparse

from nni_blockswap.own_options import add_own_network
from nni_blockswap.training import options, teachers
from nni_blockswap.training.program import main
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.trust import add_allow


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser("python -m trial.teacher", description=__doc__)
    command.add_argument("--architecture", metavar="FILE", help="any saved Architecture of the space")
    add_allow(command)
    command.add_argument("--out", metavar="DIR", help="leave the weights there, too, as weights.pt")
    options.add_teacher_folder(command)
    options.add_space(command)
    add_own_network(command)
    options.add_data(command)
    options.add_recipe(command)
    options.add_machine(command)
    return command


def check(given: argparse.Namespace) -> Recipe:
    """The recipe in the command line. Raises ConfigError where nobody could train by it."""
    options.machine_from(given)
    return options.recipe_from(given)


def run() -> None:
    """Train one teacher, unless it is there already."""
    teachers.run(parser().parse_args())


if __name__ == "__main__":
    main("trial.teacher", run)

"""Train a student by attention transfer: ``python -m trial.distill``.

Under NNI the architecture comes from the tuner and everything is written to the trial's output folder. Outside NNI:

    python -m trial.distill --architecture best.json --data cifar10 --data-root DIR --out DIR

The same command in the same folder goes on where a killed run stopped.
"""

import argparse

from nni_blockswap.training import distillation_trial, options
from nni_blockswap.training.program import main
from nni_blockswap.training.recipe import Recipe


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = options.StudentParser("python -m trial.distill", description=__doc__.partition("\n")[0])
    options.add_student(command)
    options.add_teacher(command)
    distillation_trial.add_comparison(command)
    options.add_space(command)
    options.add_data(command)
    options.add_recipe(command)
    options.add_machine(command)
    return command


def check(given: argparse.Namespace) -> Recipe:
    """The recipe in the command line. Raises ConfigError where nobody could train by it."""
    return distillation_trial.check(given)[0]


def run() -> None:
    """Train one student."""
    distillation_trial.run(parser().parse_args())


if __name__ == "__main__":
    main("trial.distill", run)

"""Train Mask R-CNN over a substituted ResNet, from scratch as in the paper's section 7: ``python -m trial.detect``.

Under NNI the architecture comes from the tuner and everything is written to the trial's output folder. Outside NNI:

    python -m trial.detect --architecture best.json --data-root DIR --out DIR --devices auto

The architecture may be one of ``MaskRCNNSpace`` or of ``ResNetSpace``, whose choices carry over. It starts from fresh
weights, or with ``--teacher weights.pt`` from those of the original detector, ``--init teacher``, or of a library that
learned from it, ``--init library=DIR``. The same command in the same folder goes on where a killed run stopped.
"""

import argparse

from nni_blockswap.data_options import DETECTION
from nni_blockswap.training import detection_trial, options
from nni_blockswap.training.program import main
from nni_blockswap.training.recipe import DetectionRecipe

SPACES = {
    "detectors": "search_spaces.mask_rcnn:MaskRCNNSpace",
    "classifiers": "search_spaces.resnet:ResNetSpace",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser("python -m trial.detect", description=__doc__.partition("\n")[0])
    options.add_student(command)
    options.add_start(command)
    options.add_comparison(command)
    options.add_space(command)
    options.add_data(command, DETECTION, default="coco")
    options.add_detection_recipe(command)
    options.add_machine(command, auto="32-true, as boxes need it")
    return command


def check(given: argparse.Namespace) -> DetectionRecipe:
    """The recipe in the command line. Raises ConfigError where nobody could train by it."""
    return detection_trial.check(given)[0]


def run() -> None:
    """Train one detector."""
    detection_trial.run(parser().parse_args(), **SPACES)


if __name__ == "__main__":
    main("trial.detect", run)

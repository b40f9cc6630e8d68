"""Input as it should be: command lines and a config that take a moment each."""

from pathlib import Path
from typing import Any

from nni_blockswap.blocks.nni_format import to_nni
from nni_blockswap.spaces import cost_table
from tests.conftest import SMALL, WRN

ROOT = Path(__file__).parents[2]
IMAGES = ["--data", "digits", "--data-option", "image_size=8"]
SPACE = ["--space", WRN, *(f"--space-arg={name}={value}" for name, value in SMALL.items())]
SCORE = ["--batch-size", "4", "--processes", "1"]
SEARCH = ["search", *SPACE, *IMAGES, *SCORE, "--budget", "60%", "--samples", "5"]
TRAIN = [*IMAGES, "--batch-size", "16", "--epochs", "1", "--limit-steps", "1", "--teacher-epochs", "1"]

ARGUMENTS: dict[str, Any] = {
    "space": WRN,
    "space_args": SMALL,
    "data": "digits",
    "data_options": {"image_size": 8},
    "budget": "60%",
    "tolerance": 0.3,
    "samples": 4,
    "batch_size": 4,
    "students": 2,
    "seed": 1,
    "proxy": "fisher",
    "method": "uniform",
    "processes": 1,
}
COMPARED = {**ARGUMENTS, "comparison": {"methods": ["random"], "single": ["G(4)"], "seeds": 1}}
TAUGHT = {
    **ARGUMENTS,
    "proxy": "library",
    "library": {"folder": "library", "teacher": {"epochs": 1}, "steps": 2, "batch_size": 16},
}


def config(arguments: dict[str, Any]) -> dict[str, Any]:
    """An nnictl config with these classArgs."""
    return {
        "experimentName": "digits",
        "searchSpace": to_nni(cost_table(WRN, SMALL)),
        "trialCommand": "python -m trial.distill --data digits --data-option image_size=8 --epochs 1 --beta 10",
        "trialCodeDirectory": str(ROOT),
        "trialConcurrency": 1,
        "maxTrialNumber": 2,
        "maxExperimentDuration": "2h",
        "tuner": {
            "className": "nni_blockswap.tuner.BlockSwapTuner",
            "codeDirectory": str(ROOT),
            "classArgs": arguments,
        },
        "trainingService": {"platform": "local"},
    }


CONFIG = config(ARGUMENTS)
BOTH = {**ARGUMENTS, "comparison": {"methods": ["blockswap", "random"], "random": 3, "single": ["G(4)"], "seeds": 1}}
SHOWN = ("report", "figure mixing", "table 1", "table 2")
PLAN: dict[str, Any] = {
    "experiments": {"first": "compared.yml", "second": "compared.yml"},
    "sections": [{"title": shows, "of": ["first"], "shows": shows, "paper": "It is so."} for shows in SHOWN],
    "scales": {
        "tiny": {
            "what": "Small.",
            "class_args": {"samples": 3},
            "trial": "--epochs 2",
            "at_once": 1,
            "experiments": {"first": {"random": 3}},
            "without": ["second"],
            "study": {"batch_size": 4, "train_minibatches": [1], "processes": 1},
        }
    },
}

DETECT = ["--batch-size", "2", "--epochs", "1", "--limit-steps", "1", "--warmup", "0"]
DETECT += ["--space-arg", "min_size=32", "max_size=48", "box_batch_size_per_image=8", "--data-root", "coco"]

"""What a trial trains and where its results go: from NNI's parameters, or from the command line."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError
from nni_blockswap.training import options
from nni_blockswap.training.folder import settings_in
from nni_blockswap.training.nni_link import NNILink, is_first_process, under_nni

COMPARISON = ("method", "variant", "seed", "nonzero")
"""What a comparison's parameters say of how a network came about and is trained; see ``studies.comparison``."""

NOT_A_BLOCK = ("space", "space_args", "params", "macs", "score", "rank", "architecture_id", *COMPARISON)
"""What a tuner's parameters hold beside one substitute for each block label."""

ARCHITECTURE = "architecture.json"


def begin(given: argparse.Namespace) -> tuple[Architecture, Path, NNILink | None]:
    """The architecture to train, the folder for its results and, in NNI's first process, the tie to NNI.

    Raises:
        ConfigError: there is no architecture or no folder.
    """
    link = NNILink() if under_nni() and is_first_process() else None
    where = given.out or os.environ.get("NNI_OUTPUT_DIR")
    if not where:
        raise ConfigError("--out DIR says where results go.")
    out = Path(where)
    if link is not None:
        link.link_tensorboard()
    if link is not None and given.architecture is None:
        _take(given, link.parameters)
        return architecture_from(link.parameters, given), out, link
    if not is_first_process():
        _take(given, settings_in(out))
        return Architecture.load(out / ARCHITECTURE), out, link
    if given.architecture is None:
        raise ConfigError("--architecture FILE says what to train; 'blockswap search' writes one.")
    return Architecture.load(given.architecture), out, link


def _take(given: argparse.Namespace, parameters: Mapping[str, Any]) -> None:
    """Let a comparison's parameters outweigh the command line."""
    for name in COMPARISON:
        if name in parameters:
            setattr(given, name, parameters[name])


def architecture_from(parameters: Mapping[str, Any], given: argparse.Namespace) -> Architecture:
    """The architecture in a tuner's parameters; the space is theirs, or for NNI's own tuners the command line's."""
    space = parameters.get("space", given.space)
    if space is None:
        raise ConfigError("the tuner names no space; add --space (and --space-arg) to the trial's command.")
    arguments = parameters.get("space_args", options.space_args(given))
    choices = {label: name for label, name in parameters.items() if label not in NOT_A_BLOCK}
    found = Architecture.from_choices(space, choices, arguments)
    score = parameters.get("score")
    return found if score is None else found.scored(score, {"rank": parameters.get("rank")})

"""What a trial trains and where its results go: from NNI's parameters, or from the command line."""

import argparse
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError
from nni_blockswap.files import read_json
from nni_blockswap.results.trial import ARCHITECTURE, GIVEN, link_curves
from nni_blockswap.training import options
from nni_blockswap.training.nni_link import NNILink, is_first_process, under_nni
from nni_blockswap.training.program import say
from nni_blockswap.trust import distrust, packages_in

COMPARISON = ("method", "variant", "seed", "nonzero", "recipe")
"""What a comparison's parameters say of how a network came about and is trained; see ``studies.comparison``."""


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
        link_curves(link.output)
    if link is not None and given.architecture is None:
        _take(given, link.parameters)
        return _handed_out(given, link), out, link
    if not is_first_process():
        if under_nni() and given.architecture is None:
            _take(given, read_json(Path(os.environ["NNI_OUTPUT_DIR"]) / GIVEN))
        return Architecture.load(out / ARCHITECTURE, allow=None), out, link  # the first one has written it
    if given.architecture is None:
        raise ConfigError("--architecture FILE says what to train; 'blockswap search' writes one.")
    return Architecture.load(given.architecture, allow=given.allow), out, link


def announce(kind: str, architecture: Architecture, out: Path) -> None:
    """Say what ``kind`` of network is trained, and what it costs; leave it in the folder for its results."""
    if is_first_process():
        architecture.save(out / ARCHITECTURE)
    say(f"{kind} {architecture.id}: {architecture.spelled_costs}.")


def _handed_out(given: argparse.Namespace, link: NNILink) -> Architecture:
    """What NNI gave: a tuner that signs says what is imported, any other one no more than the command allows."""
    named = packages_in([given.space, options.space_args(given)])
    with nullcontext() if link.signed else distrust([*given.allow, *named]):
        return Architecture.from_parameters(link.parameters, given.space, options.space_args(given))


def _take(given: argparse.Namespace, parameters: Mapping[str, Any]) -> None:
    """Let a comparison's parameters outweigh the command line."""
    for name in COMPARISON:
        if name in parameters:
            setattr(given, name, parameters[name])

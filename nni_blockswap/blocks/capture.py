"""What modules give while a network runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.errors import SpaceError


@contextmanager
def captured(network: nn.Module, points: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the modules at ``points`` (paths) while the network runs; afterwards it is as it was.

    Yields:
        A mapping from path to output, in the order of ``points``, filled by each forward pass.

    Raises:
        SpaceError: the network has no module at one of the paths.
    """
    modules = dict(network.named_modules())
    missing = [point for point in points if point not in modules]
    if missing:
        raise SpaceError(f"the network has no module '{missing[0]}' to take attention from.")
    outputs = dict.fromkeys(points, torch.empty(0))  # in the order of the points, whatever runs first

    def keep(point: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs[point] = output

        return hook

    handles = [modules[point].register_forward_hook(keep(point)) for point in points]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()

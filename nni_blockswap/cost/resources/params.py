"""Parameters: all weights, biases and affine terms of normalisation; frozen statistics are none."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn


class Params:
    """Number of parameters; one that several modules share counts once."""

    name = "params"
    unit = "parameters"
    suffixes: Mapping[str, int] = {}

    def read(self, modules: Sequence[nn.Module], run: Callable[[], object]) -> int:
        """Needs no run."""
        found = {id(p): p.numel() for module in modules for p in module.parameters(recurse=False)}
        return sum(found.values())


PARAMS = Params()

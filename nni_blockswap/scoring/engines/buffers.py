"""Buffers of a network that a pass may change: seen, and put back."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Buffer:
    """A buffer as it was, whether a pass writes into it or puts another in its place.

    Args:
        module: the one that holds it.
        name: how it is called there.
        tensor: it itself; None where there is none yet.
        content: a copy.
    """

    module: nn.Module
    name: str
    tensor: Tensor | None
    content: Tensor | None

    def is_changed(self) -> bool:
        """Whether what stands there now holds anything else."""
        return not _same(self.module._buffers.get(self.name), self.content)

    def put_back(self) -> None:
        """Let the same tensor hold the same again. What is unchanged is not written to: some cannot be, as views."""
        self.module._buffers[self.name] = self.tensor
        if self.tensor is not None and self.content is not None and not _same(self.tensor, self.content):
            with torch.no_grad():
                self.tensor.copy_(self.content)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    alike = (one.dtype, one.device) == (other.dtype, other.device)
    return alike and torch.equal(one, other)


def telling_buffers(network: nn.Module) -> list[Buffer]:
    """Buffers that what is computed in training mode may depend on: all but the statistics of a normalisation."""
    return [
        Buffer(module, name, value, None if value is None else value.detach().clone())
        for module in network.modules()
        for name, value in module._buffers.items()
        if name not in STATISTICS
    ]

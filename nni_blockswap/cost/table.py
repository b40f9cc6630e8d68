"""What each choice costs, exactly: parameters and multiply-accumulates (MACs).

Counting convention. *Parameters* are all weights, biases and BN affine terms. *MACs* count convolutions and linear
layers, one a multiply-accumulate, for one image of the space's ``input_size``; BN, activations, pooling and additions
are free, as in the paper's tables. An architecture's cost is a fixed part plus one number for each block:

    cost(choices) = fixed + sum_b table_b[choice_b]

The tables come from the substitutes' closed forms; the fixed part and the sizes of the feature maps are read off one
shape-only run of the space on the meta device, which computes and allocates nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nni_blockswap.blocks.substitutes.paper import IDENTITY, Site, canonical, convs
from nni_blockswap.errors import SpaceError

RESOURCES = ("params", "macs")


class CostedBlock(Protocol):
    """What a residual block has to say about itself (see ``blocks.Block``)."""

    label: str
    site: Site
    names: tuple[str, ...]
    norm_params: int
    branch: nn.Module


@dataclass(frozen=True)
class CostTable:
    """Costs of every candidate of every block; arrays run in the order of ``candidates``."""

    labels: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    params: tuple[NDArray[np.int64], ...]
    macs: tuple[NDArray[np.int64], ...]
    fixed_params: int
    fixed_macs: int
    sites: tuple[Site, ...] = ()
    whole: "CostTable | None" = None
    """The table that this one was narrowed from, if any."""

    def index(self, choices: Mapping[str, str] | Sequence[str]) -> tuple[int, ...]:
        """Candidate indices of ``choices``: substitutes in any spelling, in block order or by label.

        Raises:
            SpaceError: an unknown label or substitute, or not exactly one choice a block.
        """
        if not isinstance(choices, Mapping):
            if len(choices) != len(self.labels):
                raise SpaceError(f"the space has {len(self.labels)} blocks; {len(choices)} choices were given.")
            choices = dict(zip(self.labels, choices, strict=True))
        self._check_labels(choices)
        missing = [label for label in self.labels if label not in choices]
        if missing:
            raise SpaceError(f"{', '.join(missing)} has no choice; give every block one ('S' keeps the original).")
        return tuple(self._position(block, choices[label]) for block, label in enumerate(self.labels))

    def _check_labels(self, labels: Iterable[str]) -> None:
        unknown = [label for label in labels if label not in self.labels]
        if unknown:
            raise SpaceError(f"'{unknown[0]}' is not a block of the space; its blocks are {', '.join(self.labels)}.")

    def _position(self, block: int, name: str) -> int:
        names = self.candidates[block]
        try:
            return names.index(canonical(name, self.sites[block]))
        except ValueError:
            raise SpaceError(
                f"'{name}' is not a candidate of {self.labels[block]}; choose from {', '.join(names)}."
            ) from None

    def columns(self, resource: str) -> tuple[int, tuple[NDArray[np.int64], ...]]:
        """Fixed part and tables of ``"params"`` or ``"macs"``."""
        return (self.fixed_params, self.params) if resource == "params" else (self.fixed_macs, self.macs)

    def total(self, resource: str, indices: Sequence[int]) -> int:
        """Cost of the architecture that takes candidate ``indices[b]`` in block b."""
        fixed, tables = self.columns(resource)
        return fixed + sum(int(table[index]) for table, index in zip(tables, indices, strict=True))

    def names(self, indices: Sequence[int]) -> dict[str, str]:
        """Choices by label."""
        return {label: names[index] for label, names, index in zip(self.labels, self.candidates, indices, strict=True)}

    def teacher(self) -> tuple[int, ...]:
        """The original network: ``S`` in every block, or where the table lacks it the dearest candidate."""
        return tuple(
            names.index(IDENTITY) if IDENTITY in names else int(np.argmax(table))
            for names, table in zip(self.candidates, self.params, strict=True)
        )

    def original(self, resource: str) -> int:
        """Cost of the space's original network, also where the table was narrowed and no longer offers it."""
        table = self if self.whole is None else self.whole
        return table.total(resource, table.teacher())

    def narrowed(self, allowed: Mapping[str, Sequence[str]]) -> "CostTable":
        """The same table with only the candidates in ``allowed`` (substitutes by label), in the table's order.

        Raises:
            SpaceError: a label or candidate is not in the table, or a block is left with none.
        """
        self._check_labels(allowed)
        keep: list[list[int]] = []
        for block, (label, names) in enumerate(zip(self.labels, self.candidates, strict=True)):
            kept = sorted({self._position(block, name) for name in allowed.get(label, names)})
            if not kept:
                raise SpaceError(f"{label} has no candidate left; list at least one of {', '.join(names)}.")
            keep.append(kept)
        return replace(
            self,
            candidates=tuple(tuple(names[i] for i in rows) for names, rows in zip(self.candidates, keep, strict=True)),
            params=tuple(table[rows] for table, rows in zip(self.params, keep, strict=True)),
            macs=tuple(table[rows] for table, rows in zip(self.macs, keep, strict=True)),
            whole=self if self.whole is None else self.whole,
        )


def branch_params(name: str, site: Site, norm_params: int = 2) -> int:
    """Parameters of a branch: its convolutions' weights, and those of the normalisation between each two of them.

    BN has ``norm_params`` = 2 a channel, scale and shift; frozen BN has none.
    """
    layers = convs(name, site)
    return sum(layer.weights for layer in layers) + sum(norm_params * layer.in_channels for layer in layers[1:])


def branch_macs(name: str, site: Site, size: tuple[int, int]) -> int:
    """MACs of a branch on one feature map of ``size`` = (height, width)."""
    total = 0
    height, width = size
    for layer in convs(name, site):
        height, width = -(-height // layer.stride), -(-width // layer.stride)
        total += layer.weights * height * width
    return total


def cost_table(network: nn.Module, blocks: Sequence[CostedBlock], run: Callable[[], object]) -> CostTable:
    """Tables of a search space.

    Args:
        network: the space, on the meta device.
        blocks: its blocks in forward order.
        run: runs the part of ``network`` whose MACs count, on one image.
    """
    in_branches = {id(parameter) for block in blocks for parameter in block.branch.parameters()}
    fixed_params = sum(p.numel() for p in network.parameters() if id(p) not in in_branches)
    fixed_macs, sizes = _measure(network, blocks, run)
    return CostTable(
        labels=tuple(block.label for block in blocks),
        candidates=tuple(block.names for block in blocks),
        params=tuple(
            np.array([branch_params(n, b.site, b.norm_params) for n in b.names], dtype=np.int64) for b in blocks
        ),
        macs=tuple(np.array([branch_macs(n, b.site, sizes[b.label]) for n in b.names], dtype=np.int64) for b in blocks),
        fixed_params=fixed_params,
        fixed_macs=fixed_macs,
        sites=tuple(block.site for block in blocks),
    )


def _measure(
    network: nn.Module, blocks: Sequence[CostedBlock], run: Callable[[], object]
) -> tuple[int, dict[str, tuple[int, int]]]:
    """MACs outside the branches, and the (height, width) that enters each branch."""
    macs = 0
    sizes: dict[str, tuple[int, int]] = {}

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else output.numel() // output.shape[-1]
        macs += weight.numel() * positions

    def record(label: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sizes[label] = (inputs[0].shape[-2], inputs[0].shape[-1])

        return hook

    inside = {id(module) for block in blocks for module in block.branch.modules()}
    handles = [block.branch.register_forward_pre_hook(record(block.label)) for block in blocks]
    handles += [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and id(module) not in inside
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return macs, sizes

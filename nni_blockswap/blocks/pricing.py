"""Reads the table of choices off a space, best on the meta device, where nothing is computed or allocated."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nni_blockswap.blocks.shells import Block
from nni_blockswap.cost.resources import RESOURCES, Measured, Resource
from nni_blockswap.cost.resources.base import RealNetwork
from nni_blockswap.cost.table import Column, Table
from nni_blockswap.errors import BlockSwapError, BudgetError, first_line, shown
from nni_blockswap.spaces import ALWAYS


def price(
    network: nn.Module,
    blocks: Sequence[Block],
    run: Callable[[], object],
    resources: Sequence[str],
    build: Callable[[], RealNetwork] | None = None,
) -> Table:
    """The table of a space.

    Args:
        network: the space, unfrozen.
        blocks: its blocks in forward order.
        run: runs the part of ``network`` that counts, on one image.
        resources: names, the first of which says what a block's dearest candidate is.
        build: makes the space with all its weights, for resources that are measured.
    """
    entering = _entering(blocks, run)
    inside = {id(module) for block in blocks for module in block.branch.modules()}
    rest = [module for module in network.modules() if id(module) not in inside]

    def counted(resource: Resource) -> Column:
        known = dict[Hashable, int]()
        costs = tuple(
            np.array([_of_candidate(resource, block, name, x, known) for name in block.names], dtype=np.int64)
            for block, x in zip(blocks, entering, strict=True)
        )
        return Column(resource.unit, _read(resource, rest, run), costs)

    found = {name: RESOURCES[name] for name in resources}
    table = Table(
        labels=tuple(block.label for block in blocks),
        candidates=tuple(block.names for block in blocks),
        columns={name: counted(one) for name, one in found.items() if not isinstance(one, Measured)},
        sites=tuple(block.site for block in blocks),
    )
    measured = {
        name: _asked(one, partial(one.measure, build, table))
        for name, one in found.items()
        if isinstance(one, Measured) and build
    }
    return replace(table, columns={**table.columns, **measured})


def _of_candidate(resource: Resource, block: Block, name: str, entering: Tensor, known: dict[Hashable, int]) -> int:
    """Cost of one candidate; at sites alike, fed alike, it is the same and read once."""
    key = (block.site, name, entering.shape)
    if key not in known:
        branch = block.candidate(name)
        known[key] = _read(resource, list(branch.modules()), partial(branch, entering))
    return known[key]


def _read(resource: Resource, modules: Sequence[nn.Module], run: Callable[[], object]) -> int:
    """What ``modules`` take. Raises BudgetError where that is no whole number: sums of costs are exact."""
    found = _asked(resource, partial(resource.read, modules, run))
    found = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found  # a sum over weights, say
    if not isinstance(found, int | float | np.number) or not float(found).is_integer() or found < 0:
        raise BudgetError(
            f"the resource '{resource.name}' gives {shown(found)}, and a cost is a whole number from 0 on; count in a "
            "smaller unit, or round."
        )
    return int(found)


def _asked(resource: Resource | Measured, ask: Callable[[], Any]) -> Any:
    """What a resource says. Raises BudgetError where one of the user's own, or a measurement, fails."""
    try:
        return ask()
    except BlockSwapError:
        raise
    except Exception as error:
        if resource.name in ALWAYS:  # by the network's own fault
            raise
        reason = f"{first_line(error)} ({type(error).__name__})"
        raise BudgetError(f"the resource '{resource.name}' cannot say what a network takes: {reason}.") from error


def _entering(blocks: Sequence[Block], run: Callable[[], object]) -> list[Tensor]:
    """What enters each branch: one image's map."""
    found: dict[int, Tensor] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[id(module)] = torch.zeros_like(inputs[0])  # a new one: a branch may change its input in place

    handles = [block.branch.register_forward_pre_hook(record) for block in blocks]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [found[id(block.branch)] for block in blocks]

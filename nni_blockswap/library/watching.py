"""What enters and leaves the branches of a network while it runs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.shells import Block
from nni_blockswap.errors import ConfigError

Look = Callable[[Tensor, Tensor], None]
"""Given what enters a branch, (N, C_in, H, W), and what leaves it, (N, C_out, H', W')."""


class _Seen(Exception):  # noqa: N818  # no error: the way out of a forward pass that has nothing more to show
    pass


@torch.no_grad()
def watch(network: nn.Module, inputs: Any, looks: Mapping[Block, Look]) -> None:
    """Run ``network`` on ``inputs`` and show ``looks`` what passes the branches of their blocks.

    Each look comes at once, before anything is changed in place, so that activations of one block are held at a time.
    The pass ends behind the last of the blocks: of a detector, heads and proposals are not run. A look may run the
    branch that it looks at, and is not shown that.

    Raises:
        ConfigError: a look has changed what enters.
    """
    missing = dict.fromkeys(looks)
    looking: set[Block] = set()

    def hook(block: Block) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def show(module: nn.Module, entered: tuple[Tensor, ...], left: Tensor) -> None:
            if block in looking:
                return
            looking.add(block)
            before = entered[0]._version
            try:
                looks[block](entered[0], left)
            finally:
                looking.discard(block)
            if entered[0]._version != before:
                raise ConfigError(
                    f"a candidate of {block.label} changes in place what enters it, as one does that begins with "
                    "nn.ReLU(inplace=True), and others learn from that, too; let it leave that as it is."
                )
            missing.pop(block, None)
            if not missing:
                raise _Seen

        return show

    handles = [block.active_branch().register_forward_hook(hook(block)) for block in looks]
    try:
        network(inputs)
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()

"""Which links of a chain feed the head, and what comes back from there; see ``chain``."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.scoring.engines.buffers import telling_buffers
from nni_blockswap.scoring.engines.links import Link, few, standing_in
from nni_blockswap.tasks import Batch, Task


def feeding(network: BlockSpace, task: Task, batch: Batch, chain: Sequence[Link]) -> tuple[int, ...]:
    """The positions of the links that feed the head, the last among them; none where ``chain`` is no chain.

    It is one if nothing changes in place what a link gives, if the head sees of images and links no more than what
    links give, and, of a classifier, the same whichever images come with it, and if nothing is drawn at random or
    kept for the next pass. Two images tell.
    """
    images, targets = few(batch)
    sources = [one.detach().requires_grad_() for one in ([images] if isinstance(images, Tensor) else images)]
    buffers = telling_buffers(network)
    leaves, passed, state = list[Tensor](), list[Tensor](), _random_state(sources[0].device)

    def cut(forwards: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        sources.append(x.detach().requires_grad_())
        passed.append(out := sources[-1].clone())
        for forward in forwards:
            out = forward(out)
        leaves.append(out.detach().requires_grad_())
        passed.append(leaves[-1].clone())
        return passed[-1]

    cuts = [partial(cut, [module.forward for module in link.modules]) for link in chain]
    with standing_in(chain, cuts):
        loss = task.loss(network, (sources[0] if isinstance(images, Tensor) else list(sources), targets))
    changed = [buffer for buffer in buffers if buffer.is_changed()]
    for buffer in changed:
        buffer.put_back()
    if changed or not chain or any(one._version for one in passed) or not loss.requires_grad:
        return ()
    gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, [*sources, *leaves], allow_unused=True)
    fed = [place - len(sources) for place, gradient in enumerate(gradients) if gradient is not None]
    if not fed or fed[0] < 0 or fed[-1] != len(leaves) - 1:
        return ()
    if isinstance(images, Tensor) and not (
        state == _random_state(images.device)
        and _is_head(network, task, few(batch), chain, leaves, gradients[len(sources) :])
    ):
        return ()
    return tuple(fed)


def _random_state(device: torch.device) -> tuple[object, ...]:
    """Of all generators that a network may draw from."""
    of_torch = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    of_numpy: Any = np.random.get_state()  # noqa: NPY002
    return of_torch.tolist(), of_numpy[1].tolist(), of_numpy[2:], random.getstate()


def _is_head(
    network: BlockSpace,
    task: Task,
    batch: Batch,
    chain: Sequence[Link],
    outputs: Sequence[Tensor],
    expected: Sequence[Tensor | None],
) -> bool:
    """Whether ``head_gradients`` gives the ``expected``."""
    try:
        found = head_gradients(network, task, batch, chain, outputs)
    except Exception:  # somebody's network may count the images
        return False
    return all(
        one is other is None or (one is not None and other is not None and torch.allclose(one, other, 1e-3, 1e-7, True))
        for one, other in zip(found, expected, strict=True)
    )


def head_gradients(
    network: BlockSpace, task: Task, batch: Batch, chain: Sequence[Link], outputs: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Gradients of the loss with respect to ``outputs``, what the links give, past the head alone; None of the others.

    Of a classifier's images one is enough, as only the stem sees them; those of a detector say how large they are.
    """
    images, targets = batch
    leaves = [out.detach().requires_grad_() for out in outputs]
    with standing_in(chain, [partial(_given, leaf) for leaf in leaves]):
        loss = task.loss(network, (images[:1], targets) if isinstance(images, Tensor) else batch)
    return torch.autograd.grad(loss, leaves, allow_unused=True)


def added(one: Tensor | None, other: Tensor | None) -> Tensor:
    """The sum of two gradients, None where nothing comes from a side: where both meet, or the only one."""
    if one is None or other is None:
        return cast(Tensor, other if one is None else one)
    return one + other


def entering(network: BlockSpace, task: Task, batch: Batch, link: Link) -> Tensor:
    """What goes into the first ``link``."""
    inputs: list[Tensor] = []
    handle = link.modules[0].register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    try:
        with torch.no_grad():
            task.loss(network, batch)
    finally:
        handle.remove()
    return inputs[0]


def _given(output: Tensor, x: Tensor) -> Tensor:
    return output

"""Unstructured pruning, to compare with: the original network with most of its weights zero, and zero they stay.

The weights of convolutions and linear layers compete for what may be non-zero; BN terms and biases are all kept. The
tensors keep their size, so that only the count of non-zeros falls, as in the paper's tables (section 5).

* ``l1-pruning`` keeps the largest weights |w| of the trained teacher and trains on at a low learning rate
  (Han et al., NeurIPS 2015).
* ``snip`` keeps the connections that matter most at initialisation, judged by one minibatch, and trains as usual
  (Lee et al., ICLR 2019).
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from nni_blockswap.errors import BudgetError
from nni_blockswap.tasks import Task
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.training.unwrapping import load_weights

L1_PRUNING, SNIP = "l1-pruning", "snip"
METHODS = (L1_PRUNING, SNIP)

FINE_TUNING = 0.1
"""A pruned network goes on at this share of the learning rate."""

Saliency = Mapping[tuple[nn.Module, str], Tensor]
"""How much each weight matters, by module and name of the weight."""


def prunable(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """Weights that may be pruned: those of convolutions and linear layers."""
    return [(module, "weight") for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def magnitudes(network: nn.Module) -> Saliency:
    """|w| of every prunable weight."""
    return {(module, name): getattr(module, name).detach().abs() for module, name in prunable(network)}


def connection_sensitivity(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Saliency:
    """SNIP's saliency of every prunable weight.

    With a mask c = 1 on each weight, L(c * w) has the gradient g = dL/dc = w * dL/dw, and

        s_j = |g_j| / sum_k |g_k|

    Args:
        network: at initialisation; it is left as it was.
        loss: of the network on one minibatch.

    Source: Lee et al., *SNIP: Single-shot network pruning based on connection sensitivity*, ICLR 2019, section 4.1.
    """
    measured = copy.deepcopy(network).train()  # its BN statistics move
    weights = [getattr(module, name) for module, name in prunable(measured)]
    gradients = torch.autograd.grad(loss(measured), weights)
    sensitivities = [(weight * gradient).detach().abs() for weight, gradient in zip(weights, gradients, strict=True)]
    total = torch.stack([one.sum() for one in sensitivities]).sum()
    return {key: one / total for key, one in zip(prunable(network), sensitivities, strict=True)}


def sparsify(network: nn.Module, nonzero: int, saliency: Saliency) -> None:
    """Keep ``nonzero`` parameters of ``network``: the prunable weights with the largest ``saliency``, and all others.

    From now on a pruned weight is its free value times a fixed mask, both part of the state_dict: neither momentum nor
    weight decay nor a checkpoint can revive it. ``make_permanent`` undoes the wrapping.

    Raises:
        BudgetError: ``nonzero`` is out of reach.
    """
    weights = prunable(network)
    competing = sum(getattr(module, name).numel() for module, name in weights)
    total = sum(parameter.numel() for parameter in network.parameters())
    kept = nonzero - (total - competing)
    if not 0 < kept <= competing:
        raise BudgetError(
            f"pruning leaves {total - competing + 1:,} to {total:,} parameters of this network, not {nonzero:,}."
        )
    prune.global_unstructured(weights, prune.L1Unstructured, importance_scores=saliency, amount=competing - kept)


def make_permanent(network: nn.Module) -> None:
    """Turn masked weights into plain ones, zeros included."""
    for module, name in prunable(network):
        if prune.is_pruned(module):
            prune.remove(module, name)  # type: ignore[no-untyped-call]


def prune_student(
    student: nn.Module, method: str, nonzero: int, teacher: nn.Module | None, task: Task, recipe: Recipe
) -> None:
    """Make the freshly drawn ``student``, shaped as the teacher, sparse by ``method``.

    Args:
        nonzero: parameters that stay.
        teacher: the trained original, for ``l1-pruning``.
        recipe: says size and seed of the minibatch, for ``snip``.

    Raises:
        BudgetError: ``nonzero`` is out of reach.
        CheckpointError: ``student`` is not shaped as the teacher.
    """
    if method == L1_PRUNING:
        assert teacher is not None
        load_weights(student, teacher.state_dict(), "the teacher")
        saliency = magnitudes(student)
    else:
        batch = task.minibatch(recipe.batch_size, seed=recipe.seed)
        saliency = connection_sensitivity(student, lambda network: task.loss(network, batch))
    sparsify(student, nonzero, saliency)

"""Fresh weights, drawn from a seed."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def initialise(network: nn.Module) -> None:
    """Fresh weights: convolutions normal with std sqrt(2 / (k^2 C_out)), C_out not divided by the groups; biases 0.

    BN keeps scale 1 and shift 0; a linear layer keeps PyTorch's uniform weights. As in the paper's authors' networks.
    """
    for module in network.modules():
        initialise_layer(module)


def initialise_layer(module: nn.Module) -> None:
    """``initialise`` of one module, and of nothing inside it."""
    if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # there nothing is drawn, slowly
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def redrawing(module: nn.Module) -> Callable[[], object] | None:
    """Its method ``reset_parameters``; None where it has none that can be called without arguments."""
    reset: Callable[[], object] | None = getattr(module, "reset_parameters", None)
    if reset is None:
        return None
    try:
        inspect.signature(reset).bind()
    except (TypeError, ValueError):  # it asks for some, or nobody can say
        return None
    return reset


def draw_anew(module: nn.Module) -> None:
    """Fresh weights of one module, as its class draws them, where it can; of nothing inside it."""
    if (draw := redrawing(module)) is not None:
        draw()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw weights, or an augmentation, on the CPU from ``seed``, and leave torch's global generators as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set a GPU's, too
        yield

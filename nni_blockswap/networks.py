"""Any user's network: out of its wrappers, copied, laid out, and looked at for what a checkpoint cannot hold."""

import copy
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.errors import ConfigError


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside what ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel`` has put around it.

    Example:
        >>> unwrapped(nn.DataParallel(nn.Linear(2, 1)))
        Linear(in_features=2, out_features=1, bias=True)
    """
    while True:
        parallel = isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inner = network.module if parallel else getattr(network, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def copied(network: nn.Module) -> nn.Module:
    """A deep copy, also of a network whose modules hold what a forward pass has computed.

    ``weight_norm``, ``spectral_norm`` and pruning leave such tensors, a class of somebody's own may keep activations in
    a list, and torch does not copy them. In the copy they are values alone, until the next pass computes them.
    """
    held = (tensor for module in network.modules() for tensor in tensors_in(vars(module)))
    return copy.deepcopy(network, {id(one): one.detach().clone() for one in held if not one.is_leaf})


def tensors_in(given: Any, above: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """Tensors in nested lists, tuples and dictionaries.

    Args:
        given: any.
        above: ids of what it stands in, which may stand in it again.
    """
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (Mapping, list, tuple)) and id(given) not in above:
        for item in given.values() if isinstance(given, Mapping) else given:
            yield from tensors_in(item, above | {id(given)})


def hold_the_same(network: nn.Module, other: nn.Module) -> bool:
    """Whether two networks of one kind have the same weights and statistics."""
    pairs = zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def channels_last(network: nn.Module) -> nn.Module:
    """The same network, its 4-D weights laid out with channels last: what convolutions like best on CPU and GPU."""
    return laid_out(network, torch.channels_last)


def laid_out(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The same network, its 4-D weights laid out so."""
    for value in (*network.parameters(), *network.buffers()):
        if value.dim() == 4:  # nn.Module.to would also ask it of 5-D ones, which have no such layout
            value.data = value.data.to(memory_format=layout)
    return network


def check_tensors_alone(network: nn.Module, name: str, reason: str) -> None:
    """Raise ConfigError where the ``state_dict`` of ``name`` holds more than tensors, as ``get_extra_state`` makes it.

    Args:
        reason: who keeps tensors alone.
    """
    kept = next((key for key, value in network.state_dict().items() if not isinstance(value, Tensor)), None)
    if kept is not None:
        raise ConfigError(f"{name} keeps '{kept}' (get_extra_state), and {reason}; make it a buffer.")


def not_finite(network: nn.Module, among: Container[str] | None = None) -> str | None:
    """Name of a weight or a statistic that is not finite, or of a buffer that holds NaN; None where all is sound.

    Looked at is what the network keeps in its ``state_dict``. A buffer that is no statistic may be infinite, as a mask
    is.

    Args:
        among: names of those that are looked at; all if None.
    """
    for name, value in network.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or (among is not None and name not in among):
            continue
        mask = not isinstance(value, nn.Parameter) and name.rpartition(".")[2] not in ("running_mean", "running_var")
        if bool((value.isnan() if mask else ~value.isfinite()).any()):
            return name
    return None

"""Putting another module in the place of a site, where the code of the network around it stays as it is.

A chain is taken out by letting its first module do all the work, and the others nothing. Where the network itself calls
something between them, a function or a module that it also uses elsewhere, the result must go past that: the first
module hands it to the last one, and lets an empty tensor go the way between.
"""

import threading
from collections import OrderedDict

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.flow import module_of
from nni_blockswap.blocks.found import FoundSite, is_function


def replace(network: nn.Module, site: FoundSite, module: nn.Module) -> None:
    """Let ``module`` stand at ``site``: (N, *site.in_shape) -> (N, *site.out_shape), at any height and width.

    All that is no part of the site keeps its names, weights, buffers, hooks and modes. ``module`` gets the path
    ``place(site)``. A site can be replaced again.

    Args:
        network: what ``find`` saw, or a copy of it; changed in place.
        site: a site of it.
        module: what takes its place.

    Example:
        >>> from nni_blockswap.blocks.finding import find
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3))
        >>> (site,) = find(network, torch.zeros(1, 3, 9, 9)).sites
        >>> replace(network, site, nn.Conv2d(8, 16, 3, bias=False))
        >>> list(network.state_dict())
        ['0.weight', '0.bias', '2.weight']
    """
    first, *others = site.parts
    passage = _Passage() if _calls_between(site) else None
    for path in others:  # while ``module``, which may hold parts of the original, is not in the network
        if path not in site.shared:
            _put(network, path, Exit(passage) if passage and path == others[-1] else nn.Identity())
    _put(network, first, Entrance(module, passage) if passage else module)


def place(site: FoundSite) -> str:
    """Path in a network of the module that replaced ``site``."""
    return f"{site.parts[0]}.inner" if _calls_between(site) else site.parts[0]


def _calls_between(site: FoundSite) -> bool:
    """Whether the network calls something inside the chain that cannot be replaced by an identity."""
    return bool(site.shared) or any(map(is_function, site.steps))


def extract(network: nn.Module, site: FoundSite) -> nn.Module:
    """The original at a site, made of the network's own modules: in its place it computes the same to the bit.

    A chain is an ``nn.Sequential`` with their names below ``site.path``: conv1, bn1, relu, conv2. What lies deeper is
    joined, ``conv.0.0`` to ``conv_0_0``; a function becomes a module with the name of its class, ``relu``.
    """
    if site.kind == "conv":
        return network.get_submodule(site.path)
    training = network.get_submodule(site.parts[0]).training
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for step in site.steps:
        if is_function(step):
            name, module = step.partition("(")[0].lower(), module_of(step).train(training)
        else:
            name, module = step.removeprefix(f"{site.path}.").replace(".", "_"), network.get_submodule(step)
        while name in modules:
            name += "_"
        modules[name] = module
    return nn.Sequential(modules)


class Entrance(nn.Module):
    """In the place of a chain's first module: computes what the chain is replaced by, and hands it to the ``Exit``."""

    def __init__(self, inner: nn.Module, passage: "_Passage") -> None:
        super().__init__()
        self.inner = inner
        self._passage = passage

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        self._passage.tensor = result
        return torch.empty_like(result[:0])  # nothing of the result, which an in-place function between would change


class Exit(nn.Module):
    """In the place of a chain's last module: gives what the ``Entrance`` computed."""

    def __init__(self, passage: "_Passage") -> None:
        super().__init__()
        self._passage = passage

    def forward(self, _: Tensor) -> Tensor:
        result, self._passage.tensor = self._passage.tensor, None
        if result is None:
            raise RuntimeError("the Exit of a swapped chain ran before its Entrance.")
        return result


class _Passage(threading.local):
    """A tensor on its way from an ``Entrance`` to its ``Exit``; threads of ``DataParallel`` do not see each other's."""

    tensor: Tensor | None = None

    def __reduce__(self) -> tuple[type["_Passage"], tuple[()]]:
        return _Passage, ()  # copied and pickled empty


def _put(network: nn.Module, path: str, new: nn.Module) -> None:
    """Register ``new`` under every name that the module at ``path`` has."""
    old = network.get_submodule(path)
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)

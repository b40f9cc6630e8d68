"""Following a network with torch.fx, down to torch's own modules and functions."""

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from nni_blockswap.exporting.snapshot import parts_of

NAMESPACES = {"F": functional, "torch": torch, "operator": operator, "math": math}
"""Where a function may come from, by the name that generated code gives the place."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def spelled(function: Any) -> str | None:
    """How generated code names a function, or None where neither torch nor Python has it.

    Example:
        >>> spelled(functional.relu), spelled(torch.flatten), spelled(inspect.signature)
        ('F.relu', 'torch.flatten', None)
    """
    name = getattr(function, "__name__", "")
    for prefix, namespace in NAMESPACES.items():
        if getattr(namespace, name, None) is function:
            return f"{prefix}.{name}"
    return None


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch.nn's own that is not looked into: a convolution, a ReLU."""
    bare = type(module) is nn.Module or isinstance(module, CONTAINERS)
    return getattr(nn, type(module).__name__, None) is type(module) and not bare


def is_container(module: nn.Module) -> bool:
    """Whether a module does what torch's Sequential, ModuleList or ModuleDict does and nothing else."""
    plain = any(isinstance(module, kind) and type(module).forward is kind.forward for kind in CONTAINERS)
    return plain and not module._parameters and not module._buffers


def is_numbered(module: nn.Module) -> bool:
    """Whether a module's parts are called 0, 1, 2, ... in order."""
    return list(module._modules) == [str(number) for number in range(len(module._modules))]


class FlatTracer(fx.Tracer):
    """Makes one graph of all calls of torch's layers. Identities vanish."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_layer(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return args[0] if type(m) is nn.Identity else super().call_module(m, forward, args, kwargs)

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: Any, *rest: Any, **named: Any) -> Any:
        if kind == "call_function" and isinstance(target, FunctionType) and spelled(target) is None:
            return target(*args, **kwargs)  # fx.wrap asks for a single node, which would need the author's package
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)


class Outline(FlatTracer):
    """Makes a graph for each module, so that the network's structure is kept: ``Outline().follow(network)``.

    In a module's graph its own parts are named by their paths below it.

    Attributes:
        graphs: by module, one for each time that it is called; those that only pass on what they are given have none.
        used: modules that are called or of which a tensor is read.
        read: names of the tensors that graphs read, by the module that holds them.
        stuck_in: the class whose forward pass could not be followed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graphs: dict[nn.Module, list[fx.Graph]] = {}
        self.used: set[nn.Module] = set()
        self.read: dict[nn.Module, set[str]] = {}
        self.stuck_in = ""
        self._owner: nn.Module

    def follow(self, network: nn.Module) -> None:
        """Trace ``network(images)``. Raises whatever a network raises that cannot be traced."""
        self._owner = nn.Sequential(network)  # so that the network itself is called, its other arguments at defaults
        self.trace(self._owner)

    def path_of_module(self, mod: nn.Module) -> str:
        for name, module in self._owner.named_modules(remove_duplicate=False):
            if module is mod:
                return str(name)
        raise NameError(f"a {type(self._owner).__name__} calls a {type(mod).__name__} that is not one of its modules")

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if type(m) is nn.Identity:
            return args[0]
        path = self.path_of_module(m)
        if is_layer(m):
            self.used.add(m)
            return self.create_proxy("call_module", path, args, kwargs)
        given: dict[fx.Node, Any] = {}
        names = [*inspect.signature(m.forward).parameters][: len(args)]
        names += ["inputs"] * (len(args) - len(names))
        with self._inside(m):
            inner = [self._stand_in(name, value, given) for name, value in zip(names, args, strict=True)]
            result = forward(*inner, **{name: self._stand_in(name, value, given) for name, value in kwargs.items()})
            if isinstance(result, fx.Proxy) and result.node in given:
                return given[result.node]
            self.create_node("output", "output", (self.create_arg(result),), {})
            self.graphs.setdefault(m, []).append(self.graph)
        self.used.add(m)
        return _unpacked(self.create_proxy("call_module", path, tuple(given.values()), {}), result)

    @contextmanager
    def _inside(self, module: nn.Module) -> Iterator[None]:
        outer = self.graph, self._owner
        self.graph, self._owner = fx.Graph(), module
        try:
            yield
        except Exception:
            self.stuck_in = self.stuck_in or type(module).__name__
            raise
        finally:
            self.graph, self._owner = outer

    def _stand_in(self, name: str, value: Any, given: dict[fx.Node, Any]) -> Any:
        """What a module's graph has for an argument: an input of its own, or a constant itself."""
        if not parts_of(value, fx.Proxy):
            return value
        stand_in = self.create_proxy("placeholder", name, (), {})
        given[stand_in.node] = value
        return _unpacked(stand_in, value)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if not isinstance(attr_val, Tensor):
            return attr_val
        return self.create_proxy("get_attr", self._path_of_tensor(attr_val), (), {})

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            return self.create_node("get_attr", self._path_of_tensor(a), (), {})
        if isinstance(a, fx.Proxy) and a.node.graph is not self.graph:
            raise NameError(f"a {type(self._owner).__name__} uses a value that was not given to it")
        return super().create_arg(a)

    def _path_of_tensor(self, tensor: Tensor) -> str:
        known = chain(*(of(remove_duplicate=False) for of in (self._owner.named_parameters, self._owner.named_buffers)))
        path = next((name for name, one in known if one is tensor), None)
        if path is None:  # an attribute that is no buffer, or made by the forward pass from nothing
            path = f"constant_{len(self._owner._buffers)}"
            self._owner.register_buffer(path, tensor)
        holder, _, name = path.rpartition(".")
        module = self._owner.get_submodule(holder)
        self.used.add(module)
        self.read.setdefault(module, set()).add(name)
        return path


def _unpacked(proxy: Any, like: Any) -> Any:
    """Proxies for the parts of a value that is built like ``like``; what is constant in it stays."""
    if isinstance(like, fx.Proxy):
        return proxy
    if not parts_of(like, fx.Proxy):
        return like
    if isinstance(like, Mapping):
        return {key: _unpacked(proxy[key], value) for key, value in like.items()}
    return type(like)(_unpacked(proxy[place], value) for place, value in enumerate(like))

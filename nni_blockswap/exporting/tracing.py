"""Following a network with torch.fx, down to torch's own layers and functions."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from types import FunctionType
from typing import Any

from torch import Tensor, fx, nn

from nni_blockswap.exporting.dead_code import drop_dead
from nni_blockswap.exporting.snapshot import parts_of
from nni_blockswap.exporting.vocabulary import is_container, is_layer, spelled


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
        used: modules that graphs call or of which they read a tensor.
        read: names of those tensors, by the module that holds them.
        dissolved: classes of modules that hand values to others behind their callers' backs, and so have no graph of
            their own: what they do is in the graphs of their callers.
        stuck_in: the class whose forward pass could not be followed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graphs: dict[nn.Module, list[fx.Graph]] = {}
        self.used: set[nn.Module] = set()
        self.read: dict[nn.Module, set[str]] = {}
        self.dissolved: set[type[nn.Module]] = set()
        self.stuck_in = ""
        self._owner: nn.Module

    def follow(self, network: nn.Module) -> None:
        """Trace ``network(images)``. Raises whatever a network raises that cannot be traced."""
        whole = nn.Sequential(network)  # so that the network is called, its other arguments at their defaults
        while whole not in self.graphs:
            self._owner = whole
            try:
                self.graphs[whole] = [self.trace(whole)]
            except _HandedOver as handed_over:
                self.dissolved.add(handed_over.module_class)
                self.graphs, self.stuck_in = {}, ""
        for owner, graphs in self.graphs.items():
            for graph in graphs:
                self._note(owner, graph)

    def _note(self, owner: nn.Module, graph: fx.Graph) -> None:
        """What a graph calls and reads."""
        for node in graph.nodes:
            if node.op == "call_module":
                self.used.add(owner.get_submodule(str(node.target)))
            elif node.op == "get_attr":
                path, _, name = str(node.target).rpartition(".")
                holder = owner.get_submodule(path)
                self.used.add(holder)
                self.read.setdefault(holder, set()).add(name)

    def is_container(self, module: nn.Module) -> bool:
        """Whether a module does no more than torch's containers do, and all that is in it is called as a whole."""
        return is_container(module) and not any(type(part) in self.dissolved for part in module.children())

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
            return self.create_proxy("call_module", path, args, kwargs)
        if type(m) in self.dissolved:
            return forward(*args, **kwargs)
        given: dict[fx.Node, Any] = {}
        names = [*inspect.signature(m.forward).parameters][: len(args)]
        names += ["inputs"] * (len(args) - len(names))
        with self._inside(m):
            inner = [self._stand_in(name, value, given) for name, value in zip(names, args, strict=True)]
            result = forward(*inner, **{name: self._stand_in(name, value, given) for name, value in kwargs.items()})
            if isinstance(result, fx.Proxy) and result.node in given:
                return given[result.node]
            self.create_node("output", "output", (self.create_arg(result),), {})
            drop_dead(self.graph, m)
            self.graphs.setdefault(m, []).append(self.graph)
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
            made_in = (module for module, graphs in self.graphs.items() if a.node.graph in graphs)
            raise _HandedOver(type(next(made_in, self._owner)))  # of a graph that is not finished: a caller's
        return super().create_arg(a)

    def _path_of_tensor(self, tensor: Tensor) -> str:
        known = chain(*(of(remove_duplicate=False) for of in (self._owner.named_parameters, self._owner.named_buffers)))
        path = next((name for name, one in known if one is tensor), None)
        if path is None:  # an attribute that is no buffer, or made by the forward pass from nothing
            path = f"constant_{len(self._owner._buffers)}"
            self._owner.register_buffer(path, tensor)
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


class _HandedOver(Exception):  # noqa: N818  # it asks for another attempt
    """A value that was not returned by the one module, or not given to the other."""

    def __init__(self, module_class: type[nn.Module]) -> None:
        super().__init__(f"a {module_class.__name__} hands over values behind its caller's back")
        self.module_class = module_class

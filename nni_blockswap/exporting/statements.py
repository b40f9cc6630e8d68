"""A graph of torch.fx as the lines of a forward method."""

import inspect
import json
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from nni_blockswap.exporting.vocabulary import spelled

INFIX = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.floordiv: "//",
    operator.mod: "%", operator.matmul: "@", operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=",
    operator.gt: ">", operator.ge: ">=",
}  # fmt: skip


def forward_method(graph: fx.Graph, place: Callable[[str], str]) -> list[str]:
    """The lines of ``def forward(self, ...)`` for a module's graph.

    Args:
        place: how the method names what lies at a path below its module.

    Raises:
        TypeError: a function or a constant has no spelling that needs torch and Python alone.
    """
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    lines = [f"def forward({', '.join(['self', *inputs])}):"]
    names: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            names[node] = place(str(node.target))
        elif node.target is getattr:
            names[node] = f"{literal(node.args[0], names)}.{node.args[1]}"
        elif node.op == "output":
            lines.append(f"    return {literal(node.args[0], names)}")
        else:
            names[node] = node.name
            if node.op != "placeholder":
                lines.append(f"    {node.name} = {_expression(node, place, names)}")
    return _returned_at_once(lines)


def _returned_at_once(lines: list[str]) -> list[str]:
    *before, last, end = lines
    name, _, expression = last.strip().partition(" = ")
    return [*before, f"    return {expression}"] if end.strip() == f"return {name}" else lines


def _expression(node: fx.Node, place: Callable[[str], str], names: Mapping[fx.Node, str]) -> str:
    given = [literal(one, names) for one in node.args]
    if node.op == "call_method":
        return f"{given[0]}.{node.target}({_arguments(given[1:], node.kwargs, names)})"
    if node.op == "call_module":
        return f"{place(str(node.target))}({_arguments(given, node.kwargs, names)})"
    if node.target in INFIX:
        return f"{given[0]} {INFIX[node.target]} {given[1]}"
    if node.target is operator.getitem:
        return f"{given[0]}[{_index(node.args[1], names)}]"
    function = spelled(node.target)
    if function is None:
        raise TypeError(f"it calls {node._pretty_print_target(node.target)}, which is not torch's")
    return f"{function}({_arguments(given, _not_default(node), names)})"


def _arguments(positional: list[str], named: Mapping[str, Any], names: Mapping[fx.Node, str]) -> str:
    return ", ".join([*positional, *(f"{name}={literal(value, names)}" for name, value in named.items())])


def _not_default(node: fx.Node) -> dict[str, Any]:
    """The named arguments of a function that say something."""
    try:
        parameters = inspect.signature(node.target).parameters  # type: ignore[arg-type]  # a function
    except ValueError:  # of one in C++ nothing is known
        return dict(node.kwargs)
    default = {name: parameter.default for name, parameter in parameters.items()}
    return {name: value for name, value in node.kwargs.items() if name not in default or value != default[name]}


def _index(key: Any, names: Mapping[fx.Node, str]) -> str:
    """What stands between the brackets: ``:, 1:`` for a tuple of slices."""
    if isinstance(key, tuple) and key:
        return ", ".join(_index(one, names) for one in key)
    if isinstance(key, slice):
        start, stop, step = ("" if part is None else literal(part, names) for part in (key.start, key.stop, key.step))
        return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
    return literal(key, names)


def literal(value: Any, names: Mapping[fx.Node, str] | None = None) -> str:
    """Python for a constant, with ``names`` for the nodes in it.

    Raises:
        TypeError: there is none that needs torch and Python alone.

    Example:
        >>> print(literal((1, "mean", [None, torch.float32], math.inf)))
        (1, "mean", [None, torch.float32], float("inf"))
    """
    if isinstance(value, fx.Node):
        return (names or {})[value]
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple | list):
        inner = ", ".join(literal(one, names) for one in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {literal(one, names)}" for key, one in value.items()) + "}"
    if isinstance(value, slice):
        return f"slice({', '.join(literal(one, names) for one in (value.start, value.stop, value.step))})"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return str(value)
    if value is ...:
        return "..."
    raise TypeError(f"it uses a constant of type {type(value).__name__}")

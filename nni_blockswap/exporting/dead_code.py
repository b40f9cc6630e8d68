"""What a graph computes for nobody: left-over checks, and stand-ins of which only the shape was wanted."""

import operator
from typing import Any

import torch
from torch import fx, nn

from nni_blockswap.exporting.vocabulary import is_layer

ASSIGNMENTS = {
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.imatmul, operator.itruediv,
    operator.ifloordiv, operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor,
}  # fmt: skip


def drop_dead(graph: fx.Graph, owner: nn.Module) -> None:
    """Erase the nodes that nobody uses, but those that change what somebody does.

    Checks of the input (``torch._assert``) go, too: their messages are about the tracing.

    Args:
        graph: of a call of ``owner``.

    Example:
        >>> graph = fx.Graph()
        >>> x = graph.placeholder("x")
        >>> _ = graph.call_function(torch.relu, (x,)), graph.call_method("relu_", (x,)), graph.output(x)
        >>> drop_dead(graph, nn.ReLU())
        >>> [node.name for node in graph.nodes]
        ['x', 'relu_', 'output']
    """
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users and _without_effect(node, owner):
            graph.erase_node(node)


def _without_effect(node: fx.Node, owner: nn.Module) -> bool:
    if not _in_place(node, owner):
        return True
    changed = node.args[0] if node.args else None
    return isinstance(changed, fx.Node) and _is_spare(changed, owner)


def _is_spare(node: fx.Node, owner: nn.Module) -> bool:
    """Whether a tensor has memory of its own, which only its one user sees."""
    if len(node.users) > 1:
        return False
    if node.target is torch.empty_like:
        return True
    inner: Any = node.args[0] if node.args else None
    return _in_place(node, owner) and isinstance(inner, fx.Node) and _is_spare(inner, owner)


def _in_place(node: fx.Node, owner: nn.Module) -> bool:
    """Whether a call may change what it is given."""
    if node.op == "get_attr" or node.target is torch._assert:
        return False
    if node.op == "call_module":
        module = owner.get_submodule(str(node.target))
        return not is_layer(module) or bool(getattr(module, "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "_")
    named_so = name.endswith("_") or bool(node.kwargs.get("inplace", False)) or "out" in node.kwargs
    return named_so or node.target in ASSIGNMENTS

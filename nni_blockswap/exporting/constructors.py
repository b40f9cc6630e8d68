"""Modules as the Python expressions that construct them."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nni_blockswap.exporting.statements import literal

WIDTH = 100
SPATIAL = {"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"}
"""Arguments of which torch takes one number for (n, n)."""


@dataclass(frozen=True)
class Call:
    """An expression with arguments: ``opening``, the arguments each after its prefix such as ``bias=``, ``closing``.

    Example:
        >>> print(Call("nn.ReLU(", [("inplace=", "True")]).layout())
        nn.ReLU(inplace=True)
    """

    opening: str
    arguments: "Sequence[tuple[str, Call | str]]"
    closing: str = ")"

    def layout(self, indent: int = 0, taken: int = 0) -> str:
        """On one line where that is not too long, else an argument a line; ``taken`` counts what stands before it."""
        flat = self.flat()
        if indent + taken + len(flat) <= WIDTH:
            return flat
        inner = indent + 4
        lines = [" " * inner + prefix + _layout(one, inner, len(prefix)) + "," for prefix, one in self.arguments]
        return "\n".join([self.opening, *lines, " " * indent + self.closing])

    def flat(self) -> str:
        """On one line."""
        parts = (prefix + (one if isinstance(one, str) else one.flat()) for prefix, one in self.arguments)
        return self.opening + ", ".join(parts) + self.closing


def _layout(expression: Call | str, indent: int, taken: int) -> str:
    return expression if isinstance(expression, str) else expression.layout(indent, taken)


def layer(module: nn.Module) -> Call:
    """The call that makes one of torch's layers, its weights apart; arguments that are torch's defaults are left out.

    Raises:
        TypeError: the layer does not keep what it was made with.

    Example:
        >>> layer(nn.Conv2d(3, 8, (3, 3), padding=1, bias=False)).layout()
        'nn.Conv2d(3, 8, 3, padding=1, bias=False)'
    """
    return Call(f"nn.{type(module).__name__}(", list(_arguments(module)))


def _arguments(module: nn.Module) -> Iterator[tuple[str, str]]:
    parameters = inspect.signature(type(module)).parameters.values()
    for parameter in parameters:
        if parameter.name in ("device", "dtype") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        if not hasattr(module, parameter.name):
            if required:
                raise TypeError(f"a {type(module).__name__} does not keep its {parameter.name}")
            continue
        value = _simple(parameter.name, getattr(module, parameter.name), parameter.default)
        if required or value != parameter.default:
            yield "" if required else f"{parameter.name}=", literal(value)


def _simple(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        return value is not None if value is None or isinstance(value, Tensor) else value  # bias=True is kept as a bias
    if name in SPATIAL and isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    return value

"""What torch itself has a name for: functions, layers, containers."""

import math
import operator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

NAMESPACES = {"F": functional, "torch": torch, "operator": operator, "math": math}
"""Where a function may come from, by the name that generated code gives the place."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def spelled(function: Any) -> str | None:
    """How generated code names a function, or None where neither torch nor Python has it.

    Example:
        >>> spelled(functional.relu), spelled(torch.flatten), spelled(spelled)
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

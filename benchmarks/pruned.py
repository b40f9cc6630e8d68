"""Networks that Torch-Pruning narrows (Fang et al., "DepGraph", CVPR 2023), to compare a library's students to."""

import copy
from collections.abc import Mapping

import torch
from torch import nn

VARIANTS: Mapping[str, tuple[str, bool]] = {
    "every layer alike, magnitude": ("magnitude", False),
    "every layer alike, Taylor": ("taylor", False),
    "all layers together, magnitude": ("magnitude", True),
    "all layers together, Taylor": ("taylor", True),
}
"""By name: how important a group of channels is, and whether groups compete with those of other layers."""

HALVINGS = 12
"""Of the interval in which the share of channels is sought."""


def costs(network: nn.Module, images: torch.Tensor) -> dict[str, int]:
    """Parameters and MACs of convolutions and linear layers, an image, counted on a forward pass."""
    macs = 0

    def count(module: nn.Module, entered: tuple[torch.Tensor], left: torch.Tensor) -> None:
        nonlocal macs
        macs += module.weight.numel() * left[0, 0].numel()  # type: ignore[operator]  # a layer's weight

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(images[:1])
    for hook in hooks:
        hook.remove()
    return {"params": sum(weight.numel() for weight in network.parameters()), "macs": macs}


def narrowed(
    teacher: nn.Module, variant: str, limits: Mapping[str, float], images: torch.Tensor, labels: torch.Tensor
) -> nn.Module:
    """The widest network that ``variant`` makes of ``teacher`` within all ``limits``.

    Args:
        teacher: in evaluation mode; not changed.
        variant: one of ``VARIANTS``.
        limits: shares of the teacher's "params" or "macs".
        images, labels: that Taylor's importance is taken on.
    """
    whole = costs(teacher, images)
    low, high = 0.0, 1.0  # shares of the channels to take away: too few, enough
    best = None
    for _ in range(HALVINGS):
        share = (low + high) / 2
        found = _prune(teacher, variant, share, images, labels)
        taken = costs(found, images)
        if all(taken[name] <= limit * whole[name] for name, limit in limits.items()):
            best, high = found, share
        else:
            low = share
    if best is None:
        raise RuntimeError(f"Torch-Pruning finds no network within {dict(limits)}.")
    return best


def _prune(teacher: nn.Module, variant: str, share: float, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    import torch_pruning

    importance, together = VARIANTS[variant]
    network = copy.deepcopy(teacher).eval().requires_grad_(True)
    if importance == "taylor":
        torch.autograd.backward(nn.functional.cross_entropy(network(images), labels))
        judge = torch_pruning.importance.GroupTaylorImportance()
    else:
        judge = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    answers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    pruner = torch_pruning.pruner.MetaPruner(
        network, images[:1], judge, pruning_ratio=share, global_pruning=together, ignored_layers=answers
    )
    pruner.step()
    for weight in network.parameters():
        weight.grad = None
    return network

"""What a substitute can take over from the original: kernels in fewer numbers, and the scale of what passes.

Where a substitute has a normalisation and an activation and the original has none, they are made to do little: what
passes is lifted by ``SHIFT`` deviations, which leaves most of it on one side of a ReLU, and the scale that was taken
away goes into the next weights.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.networks import tensors_in

SHIFT = 1.0
"""Deviations; a ReLU lets 84 % of a normal variable pass that was lifted by one."""


def importance(first: Tensor, last: Tensor, norm: Any, rectified: bool = True) -> Tensor:
    """How much each of N inner channels can matter to what leaves the branch: (N,).

        I_i = sqrt(E[relu(gamma_i z + beta_i)^2]) ||last_i||    with z normal; without a norm    ||first_i|| ||last_i||

    What BN lets out has the scale gamma and the shift beta, whatever the weights before it are, and the mean square of
    a normal variable behind a ReLU is (gamma^2 + beta^2) Phi(beta / gamma) + beta gamma phi(beta / gamma); without one
    it is gamma^2 + beta^2.

    Args:
        first: weights (N, C_in, k, k) of the first convolution.
        last: weights (C_out, N, k, k) of the second one.
        norm: what normalises between them; one without a scale lets all channels out alike. None where nothing does.
        rectified: whether an activation follows it.
    """
    after: Tensor = last.transpose(0, 1).flatten(1).norm(dim=1)
    if norm is None:
        before: Tensor = first.flatten(1).norm(dim=1)
        return before * after
    affine: Any = first_norm(norm)
    if affine is None:
        return after
    scale, shift = affine.weight.abs().clamp_min(1e-12), affine.bias
    if not rectified:
        return torch.hypot(scale, shift) * after
    ratio = shift / scale
    below = torch.special.ndtr(ratio)
    density = torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    square = (scale**2 + shift**2) * below + shift * scale * density
    let_out: Tensor = square.clamp_min(0).sqrt()
    return let_out * after


def dense_convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """Those without groups, in the order of the modules."""
    return [one for one in module.modules() if isinstance(one, nn.Conv2d) and one.groups == 1]


def first_norm(branch: nn.Module, channels: int | None = None) -> nn.Module | None:
    """The first module of ``branch`` that has a scale and a shift for each channel, of so many where it is said.

    One that has them in another shape, (1, C, 1, 1) or for each position, is none.
    """
    for module in branch.modules():
        scale, shift = (getattr(module, name, None) for name in ("weight", "bias"))
        if not isinstance(scale, Tensor) or not isinstance(shift, Tensor) or scale.dim() != 1:
            continue
        if scale.shape == shift.shape and channels in (None, len(scale)):
            return module
    return None


@torch.no_grad()
def factorise_outputs(spatial: nn.Conv2d, pointwise: nn.Conv2d, kernel: Tensor) -> None:
    """Let ``spatial``, grouped, and then ``pointwise`` be as near to ``kernel`` (N, C, k, k) as they can.

    Each group's slice of the kernel, a matrix (N) x (C/g k k), gets the product of its first singular vectors, as many
    as the group has channels between: the least sum of squares. The rows of ``spatial`` are orthonormal in a group.
    """
    between, width = spatial.out_channels // spatial.groups, spatial.in_channels // spatial.groups
    for group, part in enumerate(torch.split(kernel, width, dim=1)):
        left, values, right = torch.linalg.svd(part.flatten(1), full_matrices=False)
        rank, start = min(between, len(values)), group * between
        spatial.weight[start : start + rank] = right[:rank].view(rank, *part.shape[1:])
        pointwise.weight[:, start : start + between] = 0
        pointwise.weight[:, start : start + rank, 0, 0] = left[:, :rank] * values[:rank]


@torch.no_grad()
def factorise_inputs(pointwise: nn.Conv2d, spatial: nn.Conv2d, kernel: Tensor) -> None:
    """Let ``pointwise`` and then ``spatial``, grouped or not, be as near to ``kernel`` (M, C, k, k) as they can.

    The rows of a group of ``spatial``'s outputs, a matrix (C) x (M/g k k), get the product of their first singular
    vectors, as many as the group reads: the least sum of squares. ``pointwise`` is orthonormal in a group.
    """
    width = spatial.in_channels // spatial.groups
    for group, part in enumerate(kernel.chunk(spatial.groups)):
        left, values, right = torch.linalg.svd(part.transpose(0, 1).flatten(1), full_matrices=False)
        rank, start = min(width, len(values)), group * width
        pointwise.weight[start : start + rank, :, 0, 0] = left[:, :rank].T
        core = (values[:rank, None] * right[:rank]).view(rank, len(part), *part.shape[2:])
        outputs = slice(group * len(part), (group + 1) * len(part))
        spatial.weight[outputs] = 0
        spatial.weight[outputs, :rank] = core.transpose(0, 1)


@torch.no_grad()
def separate_inputs(expand: nn.Conv2d, depthwise: nn.Conv2d, project: nn.Conv2d, kernel: Tensor) -> None:
    """Let the three, one after the other, be as near to ``kernel`` (N, C, k, k) as they can, C channels entering.

    ``expand`` repeats each channel e times. Its part of the kernel, a matrix (N) x (k k), gets the product of its first
    e singular vectors: the least sum of squares. More than its rank are silent.
    """
    channels, times = expand.in_channels, expand.out_channels // expand.in_channels
    left, values, right = torch.linalg.svd(kernel.transpose(0, 1).flatten(2), full_matrices=False)
    rank = min(times, values.shape[1])
    expand.weight.copy_(torch.eye(channels).repeat_interleave(times, 0)[:, :, None, None])
    depthwise.weight.view(channels, times, *kernel.shape[2:])[:, :rank] = right[:, :rank].unflatten(2, kernel.shape[2:])
    columns = project.weight.view(-1, channels, times)
    columns.zero_()
    columns[:, :, :rank] = (left * values[:, None])[:, :, :rank].transpose(0, 1)


@torch.no_grad()
def separate_outputs(expand: nn.Conv2d, depthwise: nn.Conv2d, kernel: Tensor) -> None:
    """Let the first M channels behind ``expand`` and ``depthwise`` be as near to ``kernel`` (M, C, k, k) as they can.

    Each output, a matrix (C) x (k k), gets the product of its first singular vectors: the least sum of squares.
    """
    left, values, right = torch.linalg.svd(kernel.flatten(2), full_matrices=False)
    expand.weight[: len(kernel), :, 0, 0] = left[:, :, 0]
    depthwise.weight[: len(kernel), 0] = (values[:, :1] * right[:, 0]).unflatten(1, kernel.shape[2:])


def is_fittable(norm: nn.Module) -> bool:
    """Whether ``fit_affine`` can fit it: the last that it does is a scale and a shift a channel, or it does nothing."""
    inside = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    return isinstance(norm, nn.Identity) or (first_norm(norm) is norm and not inside)


@torch.no_grad()
def fit_affine(norm: nn.Module, x: Tensor, wanted: Tensor) -> None:
    """Let what ``norm`` makes of ``x`` be as near to ``wanted`` (N, C, H, W) as a scale and a shift a channel allow.

    A channel's squared error is then not above its variance, that of the best constant. Statistics are those of ``x``.
    """
    z, y = (one.transpose(0, 1).flatten(1) for one in (settled(norm, x), wanted))
    if first_norm(norm) is not norm:
        return
    weight, bias = (getattr(norm, name) for name in ("weight", "bias"))  # buffers, of a frozen one
    centred = z - z.mean(1, keepdim=True)
    scale = (centred * y).sum(1) / centred.square().sum(1).clamp_min(1e-12)
    bias.copy_(y.mean(1) - scale * (z.mean(1) - bias))
    weight.mul_(scale)


@torch.no_grad()
def settle(norm: nn.Module, x: Tensor) -> None:
    """Let the statistics that ``norm`` keeps, if it does, be those of ``x`` (N, C, ...).

    One number a channel has no variance: both stay as they are.
    """
    mean, variance = (getattr(norm, f"running_{name}", None) for name in ("mean", "var"))
    if isinstance(mean, Tensor) and isinstance(variance, Tensor) and x.numel() > x.shape[1]:
        axes = [0, *range(2, x.dim())]
        mean.copy_(x.mean(axes))
        variance.copy_(x.var(axes))


def settle_all(branch: nn.Module, x: Tensor) -> None:
    """Let all statistics in ``branch`` be those of what comes to them from ``x``, in evaluation mode."""

    def see(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        entered = next(tensors_in((inputs, named)), None)
        if entered is not None:
            settle(module, entered)

    handles = [module.register_forward_pre_hook(see, with_kwargs=True) for module in branch.modules()]
    try:
        branch.eval()(x)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def settled(norm: nn.Module, x: Tensor) -> Tensor:
    """What ``norm`` makes of ``x`` (N, C, H, W), its statistics being those of ``x``."""
    settle(norm, x)
    normalised: Tensor = norm.eval()(x)
    return normalised


@torch.no_grad()
def lifted(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a fresh ``norm`` makes of ``x``, lifted by ``SHIFT``; and the scale that it took from each channel: (C,)."""
    if isinstance(shift := getattr(norm, "bias", None), Tensor):
        shift.fill_(SHIFT)
    normalised = settled(norm, x)
    before, after = (one.transpose(0, 1).flatten(1).std(dim=1).clamp_min(1e-12) for one in (x, normalised))
    return normalised, before / after


@torch.no_grad()
def copy_bias(conv: nn.Conv2d, original: nn.Conv2d, kept: Tensor | slice = slice(None)) -> None:
    """Let ``conv``, if it has a bias, have that of the original's channels ``kept``, or none where that has none."""
    if conv.bias is not None:
        conv.bias.copy_(torch.zeros_like(conv.bias) if original.bias is None else original.bias[kept])


@torch.no_grad()
def copy_affine(norm: nn.Module, original: nn.Module | None, kept: Tensor | slice = slice(None)) -> None:
    """Scale and shift of the original's channels ``kept`` for the first ones, where both have them."""
    if original is None or first_norm(norm) is not norm:
        return
    for name in ("weight", "bias"):
        value = getattr(original, name)[kept]
        getattr(norm, name)[: len(value)] = value

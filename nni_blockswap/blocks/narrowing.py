"""A network's own branch with fewer channels inside: a chain of convolutions, what stands between them as it is there.

The first convolution gives the inner channels, a depthwise one takes each by itself, and the last one reads them. What
else stands between has a number for each of them, as a norm has, or weights that read or give all of them, as the
convolutions of squeeze-and-excitation do.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.inheritance import importance
from nni_blockswap.blocks.norms import is_norm, resized
from nni_blockswap.blocks.weights import draw_anew, seeded
from nni_blockswap.networks import copied


def layers(branch: nn.Module) -> list[nn.Module]:
    """What runs in it, one after the other, as often as it runs: sequences are taken apart, identities left out.

    Example:
        >>> layers(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Identity(), nn.ReLU())))
        [Conv2d(3, 8, kernel_size=(1, 1), stride=(1, 1)), ReLU()]
    """
    if isinstance(branch, nn.Sequential) and type(branch).forward is nn.Sequential.forward:
        return [layer for child in branch for layer in layers(child)]  # children() has one that runs twice once
    return [] if isinstance(branch, nn.Identity) else [branch]


def narrow(original: Sequence[Any], width: int, kernel: int | None = None) -> nn.Sequential:
    """The branch of ``layers`` ``original`` with ``width`` channels inside, its weights fresh.

    All of its weights learn, also where the original's are frozen, and are drawn on the CPU, wherever those are.

    Modules are called ``conv1``, ``bn1``, ``relu1``, ``conv2``, whatever their kind of norm and activation; activations
    of an inverted residual ``act1``, ``act2``.

    Args:
        original: as above.
        width: inner channels.
        kernel: of an inverted residual's depthwise convolution.
    """
    before = original[0].out_channels
    made: OrderedDict[str, nn.Module] = OrderedDict()
    numbers: Counter[str] = Counter()
    for layer in original:
        new: nn.Module
        if isinstance(layer, nn.Conv2d):
            inputs = layer.in_channels if layer is original[0] else width
            outputs = layer.out_channels if layer is original[-1] else width
            kind, new = "conv", _like(layer, inputs, outputs, kernel)
        else:
            kind, new = _kind(layer), _with_channels(_off_the_gpu(layer), before, width)
            kind = "act" if kind == "relu" and kernel is not None else kind
        numbers[kind] += 1
        made[f"{kind}{numbers[kind]}"] = new
    return nn.Sequential(made).requires_grad_(True)


@torch.no_grad()
def take_over(branch: nn.Module, original: nn.Module) -> bool:
    """Let ``branch``, the original narrowed, have its weights, for the inner channels of greatest importance.

    A smaller depthwise kernel has the middle of the original's.

    Returns whether it did: where ``branch`` is something else, or the original has a convolution that computes
    otherwise than torch's, as one that standardises its weights, it is left as it is.
    """
    own, theirs = layers(branch), layers(original)
    if [_kind(layer) for layer in own] != [_kind(layer) for layer in theirs]:
        return False
    if not all(_is_plain(layer) for layer in theirs if isinstance(layer, nn.Conv2d)):
        return False
    first, last = theirs[0], theirs[-1]
    if not isinstance(first, nn.Conv2d) or not isinstance(last, nn.Conv2d) or len(theirs) < 2:
        return False
    width = len(next(own[0].parameters()))
    if width > first.out_channels or first.out_channels != last.in_channels:
        return False
    kept = _most_important(theirs, width)
    values = [_kept(layer, first, last, kept, mine) for layer, mine in zip(theirs, own, strict=True)]
    pairs = [*zip(map(_tensors, own), values, strict=True)]
    if any([one.shape for one in mine] != [value.shape for value in taken] for mine, taken in pairs):
        return False
    for mine, taken in pairs:
        for tensor, value in zip(mine, taken, strict=True):
            tensor.copy_(value)
    return True


def is_narrowable(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether channels can be taken from what stands between convolutions.

    It gives permuted channels permuted, if its weights are permuted with them, and runs with half of them: activations
    and squeeze-and-excitation do, shuffles do not. A norm only has to run with half of them: which channels are
    normalised together is not asked, in what has a norm inside neither.

    Args:
        layer: the module.
        shape: (C, H, W) of what enters and leaves it.
    """
    channels, half, generator = shape[0], (shape[0] + 1) // 2, torch.Generator().manual_seed(0)
    order = torch.randperm(channels, generator=generator, device="cpu")
    x = torch.randn(1, *shape, generator=generator, device="cpu")
    try:
        with torch.no_grad(), seeded(0):
            whole = copied(layer).cpu().eval()
            fewer: Tensor = _with_channels(copied(whole), channels, half)(x[:, :half].clone())
            runs = fewer.shape == (1, half, *shape[1:])
            if is_norm(layer):
                return runs
            for module in whole.modules():
                if isinstance(module, nn.GroupNorm):
                    module.num_groups = 1
            permuted = _with_channels(copied(whole), channels, channels)
            for mine, other in zip(_tensors(permuted), _tensors(whole), strict=True):
                mine.copy_(_taken(other, channels, order))
            expected, found = whole(x.clone())[:, order], permuted(x[:, order])
    except Exception:  # it is anybody's
        return False
    return runs and torch.allclose(found, expected, 1e-3, 1e-5)


def _kind(layer: nn.Module) -> str:
    """What the module is called."""
    if type(layer) in vars(nn.modules.activation).values():
        return "relu"
    if isinstance(layer, nn.Conv2d):
        return "conv"
    return "bn" if is_norm(layer) else type(layer).__name__.lower()


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether it computes what torch's own convolution does, of whatever class it is."""
    kind = type(conv)
    return kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward


def _like(conv: nn.Conv2d, inputs: int, outputs: int, kernel: int | None) -> nn.Conv2d:
    """A convolution of other widths; a depthwise one of another kernel, the size of what leaves it the same."""
    size: Any = conv.kernel_size
    padding: Any = conv.padding
    groups = 1
    if kernel is not None and conv.groups > 1:
        size, padding, groups = kernel, [step * (kernel - 1) // 2 for step in conv.dilation], outputs
    return nn.Conv2d(
        inputs,
        outputs,
        size,
        conv.stride,  # type: ignore[arg-type]  # a pair
        padding,
        conv.dilation,  # type: ignore[arg-type]
        groups=groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )


def _off_the_gpu(layer: nn.Module) -> nn.Module:
    """A copy on the CPU, whose generator is the one that is seeded; on the meta device nothing is drawn."""
    made = copied(layer)
    return made if any(tensor.is_meta for tensor in _tensors(made)) else made.cpu()


def _with_channels(module: nn.Module, before: int, after: int) -> nn.Module:
    """``module`` itself with ``after`` channels where it had ``before``, its weights fresh; of a norm, another one.

    Those that nobody says how to draw are the original's mean everywhere. Of a buffer, such as a fixed filter, it has
    the first entries, and again from the first where there are more channels than before.
    """
    known = _known(module, before)
    if is_norm(module):
        return resized(module, after) if _is_of(module, before) else module
    for name, child in list(module.named_children()):
        setattr(module, name, _with_channels(child, before, after))
    for name, weight in list(module.named_parameters(recurse=False)):
        if before in weight.shape:
            shape = [after if size == before else size for size in weight.shape]
            setattr(module, name, nn.Parameter(weight.detach().float().mean().to(weight.dtype).expand(shape).clone()))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if before in buffer.shape:
            setattr(module, name, _taken(buffer, before, torch.arange(after, device=buffer.device) % before))
    vars(module).update(dict.fromkeys(known, after))
    draw_anew(module)
    return module


def _known(module: nn.Module, channels: int) -> list[str]:
    """Names of the attributes in which it says how many channels it has."""
    return [name for name, value in vars(module).items() if type(value) is int and value == channels]


def _is_of(norm: nn.Module, channels: int) -> bool:
    """Whether a normalisation is one of so many channels, as that of an excitation's hidden layer is not."""
    said = isinstance(norm, nn.LayerNorm) and channels in norm.normalized_shape
    return said or bool(_known(norm, channels)) or any(channels in tensor.shape for tensor in _tensors(norm))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _taken(tensor: Tensor, channels: int, kept: Tensor) -> Tensor:
    """Those ``kept`` of the channels, along every axis that has one for each."""
    for axis, size in enumerate(tensor.shape):
        if size == channels:
            tensor = tensor.index_select(axis, kept.to(tensor.device))
    return tensor


def _most_important(original: Sequence[Any], width: int) -> Tensor:
    """The inner channels to keep, in their order.

    Their importance is that behind the last norm, times the size of the weights of each convolution between that and
    the last one, which takes every channel by itself.
    """
    first, last, norm, rectified = original[0].weight, original[-1].weight, None, False
    behind = first.new_ones(len(first))
    for layer in original[1:-1]:
        if isinstance(layer, nn.Conv2d):
            behind = behind * layer.weight.flatten(1).norm(dim=1)
        elif any(isinstance(module, nn.Linear | nn.modules.conv._ConvNd) for module in layer.modules()):
            continue  # what stands in an excitation is not what passes it
        else:
            for module in layer.modules():
                if is_norm(module) and _is_of(module, len(first)):
                    norm, rectified, behind = module, False, torch.ones_like(behind)
                elif _is_activation(module):
                    rectified = True
    channels: Tensor = importance(first, last, norm, rectified) * behind
    return channels.topk(width).indices.sort().values


def _is_activation(module: nn.Module) -> bool:
    """Whether it is one of torch's, or what is taken for one: a class of somebody's own that holds nothing."""
    own = not type(module).__module__.startswith("torch.nn.")
    return _kind(module) == "relu" or (own and not any(module.children()) and not _tensors(module))


def _kept(layer: Any, first: nn.Conv2d, last: nn.Conv2d, kept: Tensor, mine: Any) -> list[Tensor]:
    """Weights and statistics of the original's ``layer`` that belong to the inner channels ``kept``, for ``mine``."""
    if not isinstance(layer, nn.Conv2d):
        return [_taken(tensor, first.out_channels, kept) for tensor in _tensors(layer)]
    weight, bias = layer.weight, [] if layer.bias is None else [layer.bias]
    if layer is last:
        return [weight[:, kept], *bias]
    if layer is not first:
        begins = [(before - after) // 2 for before, after in zip(layer.kernel_size, mine.kernel_size, strict=True)]
        (top, left), (height, width) = begins, mine.kernel_size
        weight = weight[:, :, top : top + height, left : left + width]
    return [weight[kept], *(one[kept] for one in bias)]

"""Where a network of one's own comes from: the import path of what returns it, or a name that this process holds."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.digest import digest
from nni_blockswap.blocks.found import Findings
from nni_blockswap.errors import BlockSwapError, SpaceError, first_line, shown
from nni_blockswap.networks import copied, unwrapped
from nni_blockswap.registry import load

LIVE = "live:"
"""In front of the name of a network that this process holds, and that no import path leads to."""

HELD = 32
"""So many of the last ones are kept."""

_live: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}


def hold(model: nn.Module, example: Any, findings: Findings) -> str:
    """Keep ``model`` as it is now, and what its forward takes for the first of the images of ``example``.

    What is kept is a copy on the CPU: what is built later is what was searched, whatever becomes of ``model``.

    Returns:
        A name that ``make`` knows it by; networks of one name have equal weights, attributes, code and sites, and the
        same network has the same name in other processes, too.
    """
    told = [  # all else that is found follows from these and the model
        (one.path, one.kind, one.steps, one.in_shape, one.out_shape, one.norm, one.activation) for one in findings.sites
    ]
    name = f"{LIVE}{type(model).__name__}-{digest(model, told)}"
    _live.pop(name, None)
    _live[name] = copied(model).cpu(), copy.deepcopy(one_image(example))
    for oldest in list(_live)[:-HELD]:
        del _live[oldest]
    return name


def is_live(space: str, space_args: Mapping[str, Any]) -> bool:
    """Whether a space, or its network, lives in this process alone, as a script's or a notebook's own do."""
    return space.startswith("__main__:") or str(space_args.get("model", "")).startswith((LIVE, "__main__:"))


def make(model: str, model_args: Mapping[str, Any]) -> nn.Module:
    """A network of its own, on torch's default device.

    Raises:
        SpaceError: there is none of the name in this process, or what is called returns none.
    """
    network = _held(model) if model.startswith(LIVE) else _called(model, model_args)
    device = torch.empty(0).device
    if device.type == "meta":
        return _on_meta(network)
    try:
        network = copied(network)  # a function may give the same one each time, and what is made here is changed
    except Exception as error:
        raise SpaceError(
            f"{model} gives a {type(network).__name__} that cannot be copied: {first_line(error)}."
        ) from error
    return network if device.type == "cpu" else network.to(device)


def _held(model: str) -> nn.Module:
    if model not in _live:
        raise SpaceError(
            f"the network '{model}' lives in the process that called swap_blocks, while it is one of the last {HELD} "
            "that it was called with; in another one call swap_blocks with the same network, weights and arguments "
            "first, or, as nnictl needs it, give the import path of a function that returns it: --model "
            "my_package.nets:make."
        )
    return _live[model][0]


def _called(model: str, model_args: Mapping[str, Any]) -> nn.Module:
    try:
        network = load(model, "model", SpaceError)(**model_args)
    except BlockSwapError:
        raise
    except (Exception, SystemExit) as error:  # the function is anybody's
        reason = f"{first_line(error)} ({type(error).__name__})"
        raise SpaceError(f"{model} does not take the arguments {shown(dict(model_args))}: {reason}.") from error
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        raise SpaceError(
            f"{model} gives a {type(network).__name__}; it has to return a network, an nn.Module with weights."
        )
    return unwrapped(network)


def _on_meta(network: nn.Module) -> nn.Module:
    """A copy on the meta device in which modules share the weights that they share; ``Module.to`` would part them."""
    weights = {id(one): nn.Parameter(one.to("meta"), one.requires_grad) for one in network.parameters()}
    buffers = {id(one): one.to("meta") for one in network.buffers()}
    return copy.deepcopy(network, {**weights, **buffers})


def example_of(model: str, input_size: tuple[int, ...], device: torch.device) -> tuple[Any, ...]:
    """What its forward takes for one image, on ``device``: as it was held, or an empty one."""
    arguments = _live[model][1] if model in _live else (torch.zeros(1, *input_size),)
    return tuple(_moved(one, device) for one in arguments)


def one_image(example: Any) -> tuple[Any, ...]:
    """The positional arguments for the first image of a batch."""
    arguments = example if isinstance(example, tuple) else (example,)
    batch = len(arguments[0])
    return tuple(
        one[:1] if isinstance(one, list) or (isinstance(one, Tensor) and one.dim() and len(one) == batch) else one
        for one in arguments
    )


def repeated(value: Any, times: int) -> Any:
    """A batch, as a tensor or a list, so many times over."""
    if isinstance(value, Tensor):
        return value.repeat(times, *[1] * (value.dim() - 1))
    return value * times if isinstance(value, list) else value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_moved(one, device) for one in value] if isinstance(value, list) else value


def image_size(example: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images of ``example``. Raises SpaceError where it holds none."""
    batch = example[0] if isinstance(example, tuple) and example else example
    images = list(batch) if isinstance(batch, list) or (isinstance(batch, Tensor) and batch.dim()) else []
    if not images or not isinstance(images[0], Tensor) or images[0].dim() != 3:
        raise SpaceError("an example input is a batch of images (N, C, H, W), or a list of images (C, H, W).")
    return cast(tuple[int, int, int], tuple(images[0].shape))

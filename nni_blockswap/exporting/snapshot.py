"""What is exported: a copy of a network, in eval mode and on the CPU, and what it gives for an example batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nni_blockswap.errors import ConfigError, ExportError, first_line
from nni_blockswap.networks import copied, not_finite, unwrapped

Part = TypeVar("Part")

DETECTOR = "a detector, which takes its images as a list, is not exported: keep its state_dict"

NOT_FOLLOWED = "something in its forward pass, such as a hook or a branch on the data, was not followed"


@dataclass(frozen=True)
class Snapshot:
    """A network as it is exported.

    Attributes:
        network: the copy.
        images: a batch like the example, of two images where the batch size is free.
        outputs: what the network gives for it.
        dynamic_batch: whether the batch size is free.
        draws: whether it gives other outputs each time (dropout that is never off); none can be compared then.
    """

    network: nn.Module
    images: Tensor
    outputs: Any
    dynamic_batch: bool
    draws: bool = False

    @classmethod
    def of(cls, network: nn.Module, example_input: Any, dynamic_batch: bool) -> "Snapshot":
        """The copy of ``network``, once everything about it and the example has been checked.

        Raises:
            ConfigError: the network cannot take the example.
            ExportError: the network has weights that are not finite or cannot be copied, or its outputs are not those
                of a batch.
        """
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"a torch.nn.Module is exported, not a {type(network).__name__}; an Architecture's is its .build()."
            )
        if not isinstance(example_input, Tensor):
            kind = type(example_input).__name__
            raise ConfigError(f"an example input is one batch of images as a tensor, not a {kind}; {DETECTOR}.")
        network = unwrapped(network)
        _check_kind(network)
        if (name := not_finite(network)) is not None:
            raise ExportError(f"the network's '{name}' holds values that are not finite; its training has diverged.")
        copy = _copy(network).cpu().eval()
        images = _images_like(example_input.detach().cpu(), dynamic_batch)
        outputs = _run(copy, images)
        _check_outputs(outputs, len(images) if dynamic_batch else None)
        again = parts_of(_run(copy, images), Tensor)
        draws = not all(map(_equal_to_rounding, parts_of(outputs, Tensor), again))
        return cls(copy, images, outputs, dynamic_batch, draws)

    def check_same(self, outputs: Any, what: str, reason: str = NOT_FOLLOWED) -> None:
        """Compare with the network's own outputs.

        Raises:
            ExportError: they differ by more than rounding; ``what`` says whose they are, ``reason`` why that may be.
        """
        pairs = list(zip(parts_of(self.outputs, Tensor), parts_of(outputs, Tensor), strict=True))
        if not all(_equal_to_rounding(ours, theirs) for ours, theirs in pairs):
            worst = max(float((ours.double() - theirs.double()).abs().max()) for ours, theirs in pairs)
            raise ExportError(f"{what} gives other outputs than the network (by up to {worst:.2g}): {reason}.")


def parts_of(value: Any, kind: type[Part]) -> list[Part]:
    """What is of a kind in nested lists, tuples and mappings, in order.

    Example:
        >>> parts_of({"out": 1, "aux": [2, None]}, int)
        [1, 2]
    """
    if isinstance(value, kind):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [part for one in inner for part in parts_of(one, kind)]


def _images_like(example: Tensor, dynamic_batch: bool) -> Tensor:
    """A batch of the example's shape, with values in which a difference shows; of two images where any number will do.

    Not of one: torch.export would take it that there is always one.
    """
    if dynamic_batch and example.ndim:
        example = torch.cat([example[:1], example[:1]])
    if not example.is_floating_point():
        return example
    return torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example.dtype)


def _check_kind(network: Any) -> None:
    if not hasattr(network, "detects"):
        return  # not one of this package's spaces
    if network.detects:
        raise ExportError(f"{DETECTOR}.")
    if network.simplify():
        raise ExportError(
            "a search space, whose choices are open, is no network yet: export an Architecture's .build()."
        )


def _copy(network: nn.Module) -> nn.Module:
    try:
        return copied(network)
    except Exception as error:
        raise ExportError(f"the network cannot be copied: {first_line(error)}.") from error


def _run(network: nn.Module, images: Tensor) -> Any:
    """What it gives; buffers that it changes, such as a count of its passes, are put back."""
    held = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        with torch.no_grad():
            outputs = network(images.clone())  # it may change them in place
            for name, buffer in network.named_buffers():
                if name in held and not torch.equal(buffer, held[name]):
                    buffer.copy_(held[name])
            return outputs
    except Exception as error:
        raise ConfigError(
            f"the network cannot take an example input of shape {tuple(images.shape)} ({first_line(error)}); give one "
            "batch as the network takes it, such as torch.zeros(1, 3, 32, 32)."
        ) from error


def _check_outputs(outputs: Any, batch: int | None) -> None:
    if isinstance(outputs, list) and any(isinstance(part, Mapping) for part in outputs):
        raise ExportError(f"{DETECTOR}.")
    found = parts_of(outputs, Tensor)
    if not found:
        raise ExportError(f"the network's output is no tensor, nor does it hold any: a {type(outputs).__name__}.")
    for one in found:
        if batch is not None and (not one.ndim or len(one) != batch):
            raise ExportError(
                f"an output of shape {tuple(one.shape)} for {batch} images has no batch in its first dimension; "
                "export it with dynamic_batch=False."
            )


def _equal_to_rounding(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    tolerance = torch.finfo(ours.dtype).eps ** 0.5  # 3e-4 of the largest value in float32
    largest = float(ours.nan_to_num(0, 0, 0).abs().max()) if ours.numel() else 0.0
    return torch.allclose(theirs, ours, rtol=0, atol=tolerance * largest, equal_nan=True)

"""The protocol of a proxy: a number that stands for the error a network would reach, had it been trained."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.errors import ConfigError, shown
from nni_blockswap.tasks import Batch, Task
from nni_blockswap.tasks.classification import Classification


@dataclass(frozen=True)
class Score:
    """What a proxy says of one architecture: the number that ranks it and, where it is a sum over blocks, its terms."""

    value: float
    blocks: tuple[float, ...] = ()


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of scores, block by block."""
    blocks = tuple(sum(terms) / len(scores) for terms in zip(*(score.blocks for score in scores), strict=True))
    return Score(sum(score.value for score in scores) / len(scores), blocks)


def in_numbers(score: Any, proxy: str) -> Score:
    """What the proxy of this name gave, its tensors and NumPy's numbers as Python's: as such they are kept on disk.

    Raises:
        ConfigError: it is no score.
    """
    try:
        return Score(float(score.value), tuple(map(float, score.blocks)))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # the last is torch's, of several numbers
        raise ConfigError(
            f"the proxy '{proxy}' gave {shown(score)}; its measure returns Score(number), and where that is a sum over "
            "blocks Score(number, terms)."
        ) from error


class Proxy(Protocol):
    """Measures one architecture on one prepared batch.

    In time: for each draw of the weights and each candidate the scorer selects the candidate in the super-network,
    trains it for some minibatches if asked to, freezes or frees its weights as ``needs_weight_gradients`` says, and
    calls ``measure`` once a minibatch. The network is in training mode; ``measure`` must not change its weights.
    A score is the mean over draws and minibatches; a proxy whose value is a logarithm is thus a mean of logarithms.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs_weight_gradients: ClassVar[bool]

    def measure(self, network: BlockSpace, task: Task, batch: Batch) -> Score:
        """Score of the architecture that ``network`` has selected, on ``batch``."""


def connections(network: BlockSpace) -> dict[str, nn.Parameter]:
    """Weights of the selected architecture's convolutions and linear layers, by name: no bias, no normalisation."""
    active = {id(parameter) for parameter in network.active_parameters()}
    return {name: p for name, p in network.named_parameters() if p.ndim > 1 and id(p) in active}


def gradients(value: Tensor, weights: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each of ``weights`` that took part in the scalar ``value``, with its gradient."""
    asked = [weight for weight in weights if weight.requires_grad]
    _check_differentiable(value)
    for weight, gradient in zip(asked, torch.autograd.grad(value, asked, allow_unused=True), strict=True):
        if gradient is not None:
            yield weight, gradient


def gradients_at_probes(loss: Tensor, network: BlockSpace, activations: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of the ``loss`` at what passed the probes of the blocks.

    Raises:
        ConfigError: one of them does not run in training mode, or the loss does not depend on it.
    """
    _check_differentiable(loss)
    blocks = network.blocks()
    if len(activations) < len(blocks):
        raise ConfigError(
            f"{len(activations)} of the {len(blocks)} blocks run in training mode, in which networks are scored; "
            "exclude the others from the search, or let the network skip none."
        )
    found: tuple[Tensor | None, ...] = torch.autograd.grad(loss, activations, allow_unused=True)
    unused = [block.label for block, one in zip(blocks, found, strict=True) if one is None]
    if unused:
        raise ConfigError(
            f"the loss does not depend on {unused[0]}, whose path is in print(space); exclude it from the search, or "
            "give a loss that it has a part in."
        )
    return cast(tuple[Tensor, ...], found)


def _check_differentiable(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise ConfigError(
            "the loss has no gradient; it has to be computed from the network's outputs by torch alone, without "
            "item(), numpy(), detach() or argmax()."
        )


def check_classifies(proxy: str, task: Task) -> None:
    """Raise ConfigError where a proxy that needs one output for each class is asked about another task."""
    if not isinstance(task, Classification):
        raise ConfigError(f"the proxy '{proxy}' needs a classification task; '{task.name}' is none: use fisher.")


def one_tensor(proxy: str, outputs: object) -> Tensor:
    """A network's ``outputs``. Raises ConfigError where they are several, as a loss of one's own may take."""
    if not isinstance(outputs, Tensor):
        raise ConfigError(
            f"the proxy '{proxy}' needs a network that answers with one tensor, and this one's is a "
            f"{type(outputs).__name__}: use fisher."
        )
    return outputs


def logarithm(value: float) -> float:
    """The natural logarithm; -inf of 0, and NaN of NaN."""
    return math.log(value) if value > 0 else (-math.inf if value == 0 else math.nan)

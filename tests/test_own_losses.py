"""A search over a network of one's own by a loss of one's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nni_blockswap as bs
from nni_blockswap.errors import BlockSwapError, StateError
from tests.test_own import EXAMPLE, QUICK, loader, network


def test_a_loss_of_ones_own_is_searched_with() -> None:
    def doubled(outputs: Tensor, labels: Tensor) -> Tensor:
        return 2 * nn.functional.cross_entropy(outputs, labels)

    space = bs.swap_blocks(network(), EXAMPLE)
    plain = {one.id: one.score for one in bs.search(space, loader(), budget="70%", **QUICK)}
    twice = bs.search(space, loader(), budget="70%", loss=doubled, **QUICK)
    for one in twice:  # gradients are squared
        assert one.score == pytest.approx(4 * plain[one.id], rel=1e-9)


def test_scores_of_one_loss_are_not_taken_for_those_of_another(tmp_path: Path) -> None:
    def times(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda outputs, labels: factor * nn.functional.cross_entropy(outputs, labels)

    given = {"budget": "70%", "out": tmp_path, **QUICK}
    space = bs.swap_blocks(network(), EXAMPLE)
    first = bs.search(space, loader(), loss=times(2), **given)
    assert list(bs.search(space, loader(), loss=times(2), **given)) == list(first)  # in other words the same
    for other in (None, times(3), nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.ones(3))):
        with pytest.raises(StateError, match=r"other settings \(loss was"):
            bs.search(space, loader(), loss=other, **given)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.main, self.other = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        return self.head(self.main(x).relu().mean((2, 3))), self.other(x)


def first_head(outputs: Any, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs[0], labels)


@pytest.mark.parametrize("proxy", ["fisher", "taylor"])
def test_a_block_that_the_loss_does_not_depend_on_is_named(proxy: str) -> None:
    quick = {**QUICK, "budget": "90%", "proxy": proxy, "loss": first_head}
    with pytest.raises(BlockSwapError, match=r"^the loss does not depend on block_01, whose path is in print\(space\)"):
        bs.search(bs.swap_blocks(TwoHeads(), EXAMPLE), loader(), **quick)
    assert bs.search(bs.swap_blocks(TwoHeads(), EXAMPLE, exclude="other"), loader(), **quick).best.score > 0


@pytest.mark.parametrize("proxy", ["fisher", "snip"])
def test_a_loss_without_a_gradient_is_told(proxy: str) -> None:
    def detached(outputs: Tensor, labels: Tensor) -> Tensor:
        return torch.tensor(nn.functional.cross_entropy(outputs, labels).item())

    with pytest.raises(BlockSwapError, match=r"^the loss has no gradient; it has to be computed from"):
        bs.search(bs.swap_blocks(network(), EXAMPLE), loader(), budget="70%", loss=detached, proxy=proxy, **QUICK)


@pytest.mark.parametrize("layers", [[], [nn.Flatten(0)]])
def test_one_number_an_image_is_searched_with_a_loss_of_ones_own(layers: list[nn.Module]) -> None:
    def binary(outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs.flatten(), (labels > 0).to(outputs.dtype))

    space = bs.swap_blocks(nn.Sequential(*network()[:-1], nn.Linear(16, 1), *layers), EXAMPLE)
    assert bs.search(space, loader(), budget="70%", loss=binary, **QUICK).best.score > 0
    refused = r"answers with shape \(2,\), and cross-entropy takes" if layers else "has 3 classes and the network 1"
    with pytest.raises(BlockSwapError, match=refused):
        bs.search(space, loader(), budget="70%", **QUICK)


def all_heads(outputs: Any, labels: Tensor) -> Tensor:
    return sum(nn.functional.cross_entropy(one.mean((2, 3)) if one.dim() == 4 else one, labels) for one in outputs)


class Listed(TwoHeads):
    def forward(self, x: Tensor) -> Any:
        return list(super().forward(x))


def test_a_list_of_outputs_is_no_detection() -> None:
    space = bs.swap_blocks(Listed(), EXAMPLE)
    assert bs.search(space, loader(), loss=all_heads, **{**QUICK, "budget": "90%"}).best.score > 0
    with pytest.raises(BlockSwapError, match="the network answers with a list, and cross-entropy takes a tensor"):
        bs.search(space, loader(), budget="90%", **QUICK)


class Skipping(TwoHeads):
    """Its second convolution does not run in training mode."""

    def forward(self, x: Tensor) -> Any:
        x = self.main(self.stem(x).relu()).relu()
        return self.head((x if self.training else self.other(x)).mean((2, 3)))


def test_a_block_that_does_not_run_in_training_mode_is_told() -> None:
    with pytest.raises(BlockSwapError, match=r"^1 of the 2 blocks run in training mode, in which networks are scored"):
        bs.search(bs.swap_blocks(Skipping(), EXAMPLE), loader(), budget="90%", **QUICK)

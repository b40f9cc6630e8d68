"""A search over a network and data of one's own."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import nni_blockswap as bs
from nni_blockswap.errors import BlockSwapError
from nni_blockswap.tasks.loader import LoaderTask, LossTask


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


IMAGES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(40) % 3
EXAMPLE = torch.zeros(1, 1, 8, 8)
QUICK = {
    "at_most": True,
    "samples": 5,
    "batch_size": 16,
    "device": "cpu",
    "precision": "float64",
    "on_progress": lambda progress: None,
}


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=10)


def test_scores_are_fisher_potential_of_the_first_images() -> None:
    """Equation (2) on a network of the same choices and fresh weights, by hooks, in float64."""
    space = bs.swap_blocks(network(), EXAMPLE)
    ranking = bs.search(space, loader(), budget="70%", **QUICK)
    again = bs.search(space, TensorDataset(IMAGES, LABELS), budget="70%", **QUICK)
    assert len({one.id for one in ranking} & {one.id for one in again}) == 5  # a Dataset is shuffled, by the seed
    best = ranking.best
    from nni_blockswap.scoring.scorer import draw
    from nni_blockswap.seeds import derived_seed

    supernet = draw(best.space, best.space_args, derived_seed(0, 0), "float64", torch.device("cpu"))
    supernet.select(best.choices)
    seen: list[Tensor] = []
    for block in supernet.blocks():
        block.branch[best.choices[block.label]].register_forward_hook(
            lambda m, x, out: seen.append(out.clone()) or seen[-1]
        )
    loss = nn.functional.cross_entropy(supernet(IMAGES[:16].double()), LABELS[:16])
    gradients = torch.autograd.grad(loss, seen)
    expected = sum(float(((a * g).sum((2, 3)) ** 2).sum()) / 32 for a, g in zip(seen, gradients, strict=True))
    assert best.score == pytest.approx(expected, rel=1e-9)


def test_several_budgets_give_a_list_and_out_keeps_the_scores(tmp_path: Path) -> None:
    space = bs.swap_blocks(network(), EXAMPLE)
    first = bs.search(space, loader(), budget=["70%", "macs=60%"], out=tmp_path, **QUICK)
    assert [ranking.budget for ranking in first] == ["70%", "macs=60%"]
    told: list[int] = []
    quick = {**QUICK, "on_progress": lambda progress: told.append(progress.done)}
    second = bs.search(bs.swap_blocks(network(), EXAMPLE), loader(), budget=["70%", "macs=60%"], out=tmp_path, **quick)
    assert told == []
    assert [list(ranking) for ranking in first] == [list(ranking) for ranking in second]


def test_a_loss_of_ones_own_is_searched_with() -> None:
    def doubled(outputs: Tensor, labels: Tensor) -> Tensor:
        return 2 * nn.functional.cross_entropy(outputs, labels)

    space = bs.swap_blocks(network(), EXAMPLE)
    plain = {one.id: one.score for one in bs.search(space, loader(), budget="70%", **QUICK)}
    twice = bs.search(space, loader(), budget="70%", loss=doubled, **QUICK)
    for one in twice:  # gradients are squared
        assert one.score == pytest.approx(4 * plain[one.id], rel=1e-9)


def test_minibatches_do_not_overlap() -> None:
    task = LoaderTask(loader())
    assert task.num_classes == 3
    pieces = [task.minibatch(15, seed=0, index=index)[0] for index in range(2)]
    assert torch.equal(torch.cat(pieces), IMAGES[:30])


def test_regression_needs_no_classes() -> None:
    batches = [(IMAGES, torch.randn(40, 3))]
    task = LossTask(batches, lambda outputs, wanted: (outputs - wanted).square().mean())
    assert task.num_classes == 0
    assert task.loss(network(), task.minibatch(8, seed=0)).dim() == 0


@pytest.mark.parametrize(
    ("data", "settings", "sentence"),
    [
        (3, {}, "data is a DataLoader, a Dataset, or batches"),
        (iter([(IMAGES, LABELS)]), {}, "batches .* that can be iterated again"),
        ([IMAGES], {}, "a batch is .images .N, C, H, W., labels."),
        ([(IMAGES[0], LABELS)], {}, "a batch is .images .N, C, H, W., labels."),
        ([(IMAGES[:3], LABELS[:3])], {}, "the loader has 3: lower batch_size"),
        ([(IMAGES, LABELS)], {"sample": 3}, "a search has no setting 'sample'"),
        ([(IMAGES, LABELS)], {"budget": "a lot"}, "'a lot' is not a budget"),
        ([(IMAGES.repeat(1, 3, 1, 1), LABELS)], {}, "images of 1x8x8 and loader has 3x8x8"),
        ([(IMAGES, LABELS + 4)], {}, "loader has 7 classes and the network 3"),
        ([(IMAGES, LABELS)], {"loss": lambda outputs, labels: outputs}, "a scalar tensor"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(data: object, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(BlockSwapError, match=sentence):
        bs.search(bs.swap_blocks(network(), EXAMPLE), data, **{"budget": "70%", **QUICK, **settings})


def test_a_module_is_no_space() -> None:
    with pytest.raises(BlockSwapError, match="a search takes a space, as swap_blocks makes one, not a Sequential"):
        bs.search(network(), loader(), budget="70%")

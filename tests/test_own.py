"""A search over a network and data of one's own."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
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


def test_a_budget_in_hand_is_taken_as_it_is() -> None:
    space = bs.swap_blocks(network(), EXAMPLE)
    quick = {name: value for name, value in QUICK.items() if name != "at_most"}
    cap, used = bs.search(space, loader(), budget=[bs.Budget(params=0.7, at_most=True), bs.Budget(params=0.7)], **quick)
    assert (cap.budget, used.budget) == ("70%", "70%-5%")
    assert list(cap) == list(bs.search(space, loader(), budget="70%", **QUICK))
    with pytest.raises(BlockSwapError, match=r"Budget\(params=0.7\) says itself how much of it to use; leave out"):
        bs.search(space, loader(), budget=bs.Budget(params=0.7), **QUICK)


def test_it_is_told_what_scores_and_how_long_a_candidate_takes(capsys: pytest.CaptureFixture[str]) -> None:
    def own(outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.square().mean()

    given = {name: value for name, value in QUICK.items() if name != "on_progress"}
    bs.search(bs.swap_blocks(network(), EXAMPLE), loader(), budget="70%", loss=own, **given)
    said = capsys.readouterr().out
    assert re.search(r"engine: plain \(network by network, as the loss is one's own\); [\d.e-]+ s a candidate", said), (
        said
    )


def test_two_networks_of_one_class_are_kept_apart() -> None:
    first, second = network(), network()
    with torch.no_grad():
        second[0].weight.add_(1.0)
    spaces = [bs.swap_blocks(one, EXAMPLE) for one in (first, second)]
    for one, space in zip((first, second), spaces, strict=True):
        built = bs.search(space, loader(), budget="70%", **QUICK).best.build()
        assert torch.equal(built[0].weight, one[0].weight)


def test_biases_are_drawn_as_zero_where_there_are_any() -> None:
    """Of convolutions, too: else a search would score another network than a student of fresh weights is."""
    space = bs.swap_blocks(nn.Sequential(*network()[:-1], nn.Linear(16, 3, bias=False)), EXAMPLE)
    bs.search(space, loader(), budget="70%", **QUICK)
    space.redraw()
    biases = [m.bias for m in space.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None]
    assert len(biases) > 2
    assert all(bool((bias == 0).all()) for bias in biases)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: torch.compile(network, backend="eager")])
def test_a_network_is_taken_out_of_its_wrapper(wrap: Any) -> None:
    space = bs.swap_blocks(wrap(network()), EXAMPLE)
    assert space.model == bs.swap_blocks(network(), EXAMPLE).model
    assert isinstance(space.network, nn.Sequential)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_network_with_weights_that_it_has_computed_is_searched() -> None:
    original = network()
    nn.utils.weight_norm(original[-1])
    original.eval()(IMAGES)  # leaves one with a gradient, which torch does not copy
    ranking = bs.search(bs.swap_blocks(original, EXAMPLE), loader(), budget="70%", **QUICK)
    built = ranking.best.build().eval()
    assert torch.equal(built[-1].weight_v, original[-1].weight_v)
    assert built(IMAGES).shape == (40, 3)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            raise ValueError("where is the mask?")
        return self.network(x * mask)


def test_a_network_of_two_inputs_is_looked_at_and_refused_by_a_search() -> None:
    space = bs.swap_blocks(Masked(), (EXAMPLE, torch.ones(1, 1, 8, 8)))
    assert "block_01" in str(space)
    with pytest.raises(BlockSwapError, match="takes 2 inputs, and a search has images alone for it"):
        bs.search(space, loader(), budget="70%", **QUICK)


class Unit(nn.Module):
    """Runs its first part in slices, between which it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first[:2](x)
        return self.first[2](self.second(y) + y)


def in_slices() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), Unit(), Unit(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


class Asking(Unit):
    """Asks its BN for what a faster one may not have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.first[1].num_features


class Frozen(nn.Sequential):
    """Its BN stays in evaluation mode, whatever is asked for."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def hooked() -> nn.Module:
    found = in_slices()
    found[2].register_forward_hook(lambda module, inputs, output: output * 0.5)
    return found


@pytest.mark.parametrize(
    "own", [in_slices(), Frozen(*network()), nn.Sequential(in_slices()[0], Asking(), *in_slices()[2:]), hooked()]
)
def test_the_fast_ways_give_the_scores_of_the_plain_one(own: nn.Module) -> None:
    """Which is taken for a loss of one's own."""
    quick = {**QUICK, "budget": "90%", "precision": "float32"}
    fast = bs.search(bs.swap_blocks(own, EXAMPLE), loader(), **quick)
    plain = bs.search(bs.swap_blocks(own, EXAMPLE), loader(), loss=nn.functional.cross_entropy, **quick)
    scores = {one.id: one.score for one in plain}
    assert {one.id: one.score for one in fast} == pytest.approx(scores, rel=1e-2)


class Gate(nn.Module):
    """A rectified number, and a scale a channel, all of them alike."""

    def __init__(self) -> None:
        super().__init__()
        self.by, self.scale = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.full((16, 1, 1), 1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.relu(self.by) + x * self.scale


@pytest.mark.parametrize("proxy", ["naswot", "zen"])
def test_scales_of_ones_own_are_no_images_and_have_no_spread(proxy: str) -> None:
    space = bs.swap_blocks(nn.Sequential(*network()[:6], Gate(), *network()[6:]), EXAMPLE)
    assert all(np.isfinite(one.score) for one in bs.search(space, loader(), budget="70%", proxy=proxy, **QUICK))


class Written(nn.Module):
    """Looks at numbers, which there are none of on the meta device."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.isfinite(x.detach().numpy()).all())


def test_a_network_that_looks_at_its_numbers_is_counted_and_searched() -> None:
    space = bs.swap_blocks(nn.Sequential(*network()[:3], Written(), *network()[3:]), EXAMPLE)
    ranking = bs.search(space, loader(), budget="70%", **QUICK)
    plain = bs.search(bs.swap_blocks(network(), EXAMPLE), loader(), budget="70%", **QUICK)
    assert [one.costs for one in ranking] == [one.costs for one in plain]


class Told(nn.Module):
    """Equal weights and modules, whatever it is told; what it computes is not."""

    def __init__(self, activation: Any = nn.functional.relu, skips: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation, self.skips = activation, skips
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        y = self.second(self.activation(self.first(x)))
        return self.head((x + y if self.skips else y).mean((2, 3)))


def test_networks_that_differ_in_what_they_are_told_are_kept_apart() -> None:
    plain, other, skipping = (
        bs.swap_blocks(one, EXAMPLE) for one in (Told(), Told(nn.functional.silu), Told(skips=True))
    )
    assert [site.activation for site in plain.findings.sites] == ["ReLU()"] * 2
    assert [site.activation for site in other.findings.sites] == ["SiLU()"] * 2
    assert [site.kind for site in skipping.findings.sites] == ["branch"]
    assert bs.swap_blocks(Told(), EXAMPLE).model == plain.model
    ranking = bs.search(plain, loader(), budget="70%", **QUICK)
    assert ranking.best.build().activation is nn.functional.relu


def test_what_is_built_is_what_was_searched_though_it_was_trained_on() -> None:
    original = network()
    space = bs.swap_blocks(original, EXAMPLE)
    before = original[-1].weight.clone()
    with torch.no_grad():
        original[-1].weight.zero_()
    built = bs.search(space, loader(), budget="70%", **QUICK).best.build()
    assert torch.equal(built[-1].weight, before)


def test_the_last_networks_are_kept_and_older_ones_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nni_blockswap.blocks.origin.HELD", 2)
    best = bs.search(bs.swap_blocks(Told(), EXAMPLE), loader(), budget="70%", **QUICK).best
    for activation in (nn.functional.silu, nn.functional.gelu):
        bs.swap_blocks(Told(activation), EXAMPLE)
    with pytest.raises(BlockSwapError, match="lives in the process that called swap_blocks, while it is one of the la"):
        best.build()
    bs.swap_blocks(Told(), EXAMPLE)
    assert best.build().activation is nn.functional.relu


@pytest.mark.parametrize("example", [EXAMPLE[0], EXAMPLE[:0], EXAMPLE.numpy(), torch.tensor(1.0), [], "image"])
def test_an_example_holds_images(example: object) -> None:
    with pytest.raises(BlockSwapError, match=r"^an example input is a batch of images \(N, C, H, W\), or a list of im"):
        bs.swap_blocks(network(), example)


def test_costs_are_those_of_one_image_however_many_the_example_has() -> None:
    tables = [str(bs.swap_blocks(network(), EXAMPLE.expand(count, 1, 8, 8))) for count in (1, 6)]
    assert tables[0] == tables[1]


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


def test_minibatches_in_turn_are_those_one_by_one_in_one_pass() -> None:
    """Also where images are changed at random as they are read, and somebody draws numbers in between."""

    class Noisy(TensorDataset):
        read = 0

        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            Noisy.read += 1
            image, label = super().__getitem__(index)
            return image + torch.randn(()), label

    task = LoaderTask(Noisy(IMAGES, LABELS))
    alone = [task.minibatch(12, seed=5, index=index) for index in range(3)]
    Noisy.read, in_turn = 0, []
    for batch in task.minibatches(12, seed=5):
        in_turn.append(batch)
        torch.randn(3)
    assert Noisy.read == len(IMAGES) + 2 * 12  # the first batch twice, to see whether passes begin alike
    Noisy.read = 0
    assert len(list(task.minibatches(12, seed=5))) == len(in_turn) == 3
    assert Noisy.read == len(IMAGES)
    for one, other in zip(alone, in_turn, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_a_search_reads_all_its_minibatches_in_one_pass() -> None:
    class Counted:
        given = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(0, 40, 10):
                self.given += 1
                yield IMAGES[start : start + 10], LABELS[start : start + 10]

    data = Counted()
    settings: dict[str, Any] = {**QUICK, "batch_size": 10, "minibatches": 3, "train_minibatches": 2}
    one = bs.search(bs.swap_blocks(network(), EXAMPLE), data, budget="70%", **settings)
    assert data.given == 1 + 4  # the first tells what labels are
    task = LoaderTask(data)
    alone = [task.minibatch(10, seed=0, index=index) for index in range(4)]
    assert one.best.provenance["batch_fingerprint"] == "+".join(map(task.fingerprint, alone))

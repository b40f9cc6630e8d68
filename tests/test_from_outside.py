"""A substitute, a resource, a proxy, a method and a task from outside the package: no file of it is touched."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap import Architecture, SearchSettings, search
from nni_blockswap.blocks.site import FAMILIES, Site
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.cost.table import Indices
from nni_blockswap.errors import BlockSwapError
from nni_blockswap.methods.base import Problem, Request
from nni_blockswap.methods.sampler import Sampler
from nni_blockswap.scoring.proxies import Score
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.classification import Classification, Labelled
from tests.conftest import SMALL, WRN

HERE = "tests.test_from_outside"
SPACE_ARGS = {**SMALL, "extra": [f"{HERE}:MBConv(2)", f"{HERE}:MBConv(3)"]}


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 4, 1), nn.SiLU(),
                                   nn.Conv2d(channels // 4, channels, 1), nn.Sigmoid())  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x)


class MBConv:
    """Inverted residual branches: ``MBConv(e)``."""

    usage = "MBConv(e), as in MBConv(2)"

    def reads(self, name: str) -> bool:
        return name.replace(" ", "").upper().startswith("MBCONV(")

    def canonical(self, name: str, site: Site) -> str:
        return f"MBConv({int(name.partition('(')[2].rstrip(' )'))})"

    def build(self, name: str, site: Site) -> nn.Module:
        wide = site.in_channels * int(self.canonical(name, site)[7:-1])
        return nn.Sequential(
            nn.Conv2d(site.in_channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU(),
            nn.Conv2d(wide, wide, 3, site.stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU(),
            SqueezeExcite(wide), nn.Conv2d(wide, site.out_channels, 1, bias=False),
        )  # fmt: skip


FAMILIES.register("mbconv", MBConv())


class Memory:
    """Bytes of the largest activation, summed over the blocks and the rest."""

    name = "memory"
    unit = "bytes"
    suffixes: Mapping[str, int] = {"KB": 1000}

    def read(self, modules: Sequence[nn.Module], run: Callable[[], object]) -> int:
        sizes = [0]
        leaves = [module for module in modules if not list(module.children())]
        handles = [m.register_forward_hook(lambda m, x, out: sizes.append(4 * out.numel())) for m in leaves]
        run()
        for handle in handles:
            handle.remove()
        return max(sizes)


MEMORY = Memory()


class Sharpness:
    """Largest gradient at an image; it says which blocks ran."""

    name: ClassVar[str] = "sharpness"
    higher_is_better: ClassVar[bool] = False
    needs_weight_gradients: ClassVar[bool] = False

    def measure(self, network: BlockSpace, task: Any, batch: Labelled) -> Score:
        images = batch[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(task.loss(network, (images, batch[1])), images)
        return Score(float(gradient.abs().max()))


class Halves:
    """Scores some, then the neighbours of the best: each block of it changed to another candidate, where that fits."""

    def __init__(self, problem: Problem) -> None:
        import numpy as np

        self._problem, self._rng = problem, np.random.default_rng(problem.seed)
        self._first = Sampler(problem.table, problem.budget).sample(problem.samples // 2, self._rng)
        self._told: dict[Indices, float] = {}
        self._round = 0

    def ask(self) -> Request | None:
        self._round += 1
        if self._round == 1:
            return Request(tuple(self._first))
        best = min(self._told, key=lambda row: self._told[row])
        table, budget = self._problem.table, self._problem.budget
        near = [(*best[:b], k, *best[b + 1 :]) for b, names in enumerate(table.candidates) for k in range(len(names))]
        fitting = [row for row in near if budget.admits(table, table.costs(row))]
        return Request(tuple(fitting[: self._problem.samples // 2])) if self._round == 2 else None

    def tell(self, scores: Mapping[Indices, float]) -> None:
        self._told |= scores


class Noise(Classification):
    """Random images of two kinds; the loss counts every mistake twice."""

    name, num_classes = "noise", 10

    def minibatch(self, batch_size: int, *, seed: int, index: int = 0, augment: bool = True) -> Labelled:
        generator = torch.Generator().manual_seed(seed + index)
        return torch.randn(batch_size, 1, 8, 8, generator=generator), torch.arange(batch_size) % 2

    def loss(self, network: nn.Module, batch: Labelled) -> Tensor:
        return 2 * super().loss(network, batch)


def noise(root: str | None) -> Noise:
    return Noise()


SETTINGS = SearchSettings(
    space=WRN, space_args=SPACE_ARGS, data=f"{HERE}:noise", proxy=f"{HERE}:Sharpness", method=f"{HERE}:Halves",
    budgets=[f"params=60%,macs=70%,{HERE}:MEMORY=30KB"], samples=24, batch_size=8, device="cpu", precision="float32",
)  # fmt: skip


def test_a_search_with_all_five(tmp_path: Path) -> None:
    (ranking,) = search(SETTINGS, tmp_path)
    assert 12 < len(ranking.architectures) <= 24  # the second request depends on the answers to the first
    assert "MBConv(" in str([list(one.choices.values()) for one in ranking.architectures])
    scores = [one.score for one in ranking.architectures]
    assert scores == sorted(scores)
    original = Architecture.from_choices(WRN, ["S"] * 3, SPACE_ARGS)
    for one in ranking.architectures:
        built = one.build().eval()
        assert one.params == sum(weight.numel() for weight in built.parameters()) <= 0.6 * original.params
        assert one.costs["memory"] == largest_activations(built)
    best = Architecture.load(tmp_path / "best.json")
    assert best.choices == ranking.best.choices
    assert (tmp_path / "ranking.csv").read_text().startswith("rank,score,params,macs,memory,block_00")
    assert search(SETTINGS, tmp_path)[0].architectures == ranking.architectures  # from the journal


class Anything(Halves):
    """Asks for the original, whatever the budget says."""

    def ask(self) -> Request | None:
        return None if self._told else Request((self.row(),))

    def row(self) -> Indices:
        return self._problem.table.original()


class Beyond(Anything):
    """Asks for a candidate that the last block does not have."""

    def row(self) -> Indices:
        return 0, 0, len(self._problem.table.candidates[-1])


class Short(Anything):
    """Asks for an architecture of two blocks, where there are three."""

    def row(self) -> Indices:
        return 0, 0


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("Anything", "the method asks for an architecture with .* MACs and .* bytes, and the budget allows "),
        ("Beyond", r"the method asks for \(0, 0, \d+\), and an architecture is 3 indices"),
        ("Short", r"the method asks for \(0, 0\), and an architecture is 3 indices"),
    ],
)
def test_a_method_that_leaves_the_budget_or_the_table_is_refused(method: str, sentence: str) -> None:
    with pytest.raises(BlockSwapError, match=sentence):
        search(replace(SETTINGS, method=f"{HERE}:{method}"))


def largest_activations(network: nn.Module) -> int:
    """Slowly: what every leaf of each branch, and of the rest, gives for one image."""
    inside = {id(m): number for number, block in enumerate(network.blocks()) for m in block.branch.modules()}
    largest: dict[int, int] = {}

    def look(module: nn.Module, inputs: object, output: Tensor) -> None:
        place = inside.get(id(module), -1)
        largest[place] = max(largest.get(place, 0), 4 * output.numel())

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(look)
    network(torch.zeros(1, 1, 8, 8))
    return sum(largest.values())


def test_a_student_of_theirs_is_handed_to_a_trial_and_trained() -> None:
    one = Architecture.from_choices(WRN, [f"{HERE}:MBConv(3)", "mbconv( 2 )", "S"], SPACE_ARGS)
    assert list(one.choices.values()) == ["MBConv(3)", "MBConv(2)", "S"]
    read = Architecture.from_parameters(one.to_parameters())
    network = read.build().train()
    task = make_task(f"{HERE}:noise")
    loss = task.loss(network, task.minibatch(8, seed=0))
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(weight.grad is not None for weight in network.parameters())

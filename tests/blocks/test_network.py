"""Any network as a space: what holds for all of them, over torchvision's, timm's and nets written in the tests."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from nni_blockswap import Architecture, export, search, swap_blocks
from nni_blockswap.blocks.finding import find
from nni_blockswap.blocks.found import Findings
from nni_blockswap.blocks.network import NetworkSpace
from nni_blockswap.blocks.origin import hold
from nni_blockswap.blocks.space import input_size_of
from nni_blockswap.cost.table import Table
from nni_blockswap.errors import BlockSwapError, SpaceError
from nni_blockswap.spaces import NETWORK, cost_table, named_arguments, with_space
from nni_blockswap.tasks.coco import Coco
from tests.blocks.networks import NETWORKS, OWN, Network, PreActivation, Twice, conv, tensors
from tests.cost.test_table import count_macs, count_params

QUICK = {"resnet18", "mobilenet_v2", "squeezenet1_1", "Nested", "Twice", "PreActivation"}
SWAPPABLE = [
    pytest.param(
        network, id=str(network), marks=() if network.name in QUICK else pytest.mark.slow
    )  # up to a minute each
    for network in NETWORKS + OWN
    if network.sites
]
REFUSED = [pytest.param(network, id=str(network)) for network in NETWORKS if not network.sites]


@dataclass(frozen=True)
class Own:
    """A network with statistics of its own, and the space over it."""

    network: Network
    original: nn.Module
    space: NetworkSpace

    @property
    def space_args(self) -> dict[str, Any]:
        return arguments_of(self.space)

    @property
    def table(self) -> Table:
        return cost_table(NETWORK, self.space_args)

    def architecture(self, seed: int | None = None) -> Architecture:
        """A random one, or all ``S``."""
        draw = random.Random(seed)
        choices = ["S" if seed is None else draw.choice(names) for names in self.table.candidates]
        return Architecture.from_choices(NETWORK, choices, self.space_args)

    @property
    def detects(self) -> bool:
        return self.network.source.endswith("detection")

    def outputs(self, network: nn.Module, training: bool) -> list[Tensor]:
        torch.manual_seed(3)  # dropout, and a detector's choice of boxes
        return list(tensors(network.train(training)(*self.network.arguments(training))))


def arguments_of(space: NetworkSpace) -> dict[str, Any]:
    return named_arguments(NetworkSpace, *space.trace_args, **space.trace_kwargs)


@pytest.fixture(scope="module", params=SWAPPABLE)
def own(request: pytest.FixtureRequest) -> Own:
    network: Network = request.param
    original = network.make()
    with torch.no_grad():
        original.train()(*network.arguments(training=True))  # statistics of its own
    original.eval()
    return Own(network, original, swap_blocks(original, network.arguments()))


@pytest.mark.parametrize("training", [False, True])
def test_all_s_is_the_original_to_the_bit(own: Own, training: bool) -> None:
    before = {name: value.clone() for name, value in own.original.state_dict().items()}
    own.space.select({block.label: "S" for block in own.space.blocks()})
    teacher = own.architecture().build()
    assert type(teacher) is type(own.original)
    assert list(teacher.state_dict()) == list(before)
    teacher.load_state_dict(own.original.state_dict())
    expected, *others = ([*own.outputs(copy.deepcopy(one), training)] for one in (own.original, teacher, own.space))
    assert expected
    for found in others:
        assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in own.original.state_dict().items())


def test_costs_are_those_of_the_built_network(own: Own) -> None:
    assert own.table.original_cost("params") == count_params(own.original)
    for seed in range(3):
        one = own.architecture(seed)
        built = one.build()
        assert one.params == count_params(built)
        if not own.detects:  # its heads run once a proposal, and their MACs differ from image to image
            assert one.macs == count_macs(built, own.network.arguments()[0][:1])


def test_a_student_keeps_what_is_not_swapped_and_learns(own: Own) -> None:
    student, theirs = own.architecture(seed=4).build(), own.original.state_dict()
    swapped = {part for site in own.space.findings.sites for part in site.parts}
    for name, value in student.state_dict().items():
        if name in theirs and not any(name.startswith(f"{part}.") for part in swapped):
            assert torch.equal(value, theirs[name]), name
    learning = [weight for weight in student.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in learning]
    sum(output.float().square().mean() for output in own.outputs(student, training=True)).backward()
    assert sum(weight.grad is not None for weight in learning) > 0.8 * len(learning)  # Twice has one that never runs
    torch.optim.SGD(learning, lr=1e-4).step()  # a large one overflows without warm-up
    assert not all(torch.equal(*pair) for pair in zip(before, learning, strict=True))
    again = own.architecture(seed=4).build()
    again.load_state_dict(student.state_dict())
    assert all(torch.equal(*pair) for pair in zip(*(own.outputs(one, False) for one in (student, again)), strict=True))


def test_a_search_of_a_few_candidates_within_a_budget(own: Own, coco_folder: Path) -> None:
    """Classifiers by cross-entropy, a segmenter by a loss of its own, a detector by its own losses on COCO."""
    batches = [(own.network.arguments()[0], torch.arange(2))] * 2
    data, given = (Coco(str(coco_folder)), {"batch_size": 1}) if own.detects else (batches, {"batch_size": 4})
    if own.network.name in ("deeplabv3_resnet50",) or own.network.settings.get("aux_logits"):
        given["loss"] = lambda outputs, labels: sum(one.mean() for one in tensors(outputs))
    cheapest = sum(int(costs.min()) for costs in own.table.columns["params"].costs)
    budget = own.table.columns["params"].fixed + (cheapest + own.table.original_cost("params")) // 2
    told: list[int] = []
    ranking = search(own.space, data, budget=budget, at_most=True, samples=2, device="cpu", precision="float32",
                     on_progress=lambda progress: told.append(progress.done), **given)  # fmt: skip
    assert told == [1, 2]
    assert all(count_params(one.build()) <= budget for one in ranking)
    assert ranking.best.score == max(one.score for one in ranking)


def test_a_student_is_exported_and_read_again(own: Own, tmp_path: Path) -> None:
    student = own.architecture(seed=5).build()
    if own.detects:
        with pytest.raises(BlockSwapError, match="a detector, which takes its images as a list, is not exported"):
            export(student, tmp_path / "student.pt2", own.network.arguments()[0])
        return
    own.outputs(student, training=True)
    (path,) = export(student, tmp_path / "student.pt2", own.network.arguments()[0])
    reloaded = torch.export.load(path).module()
    with torch.no_grad():
        found = list(tensors(reloaded(*own.network.arguments())))
        for one, two in zip(own.outputs(student, training=False), found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", REFUSED)
def test_a_network_without_a_site_is_refused_in_a_sentence(network: Network) -> None:
    with pytest.raises(SpaceError, match=r"^no convolution of \w+ can be swapped: the stem \(1, as [^\n]+\.$"):
        swap_blocks(network.make(), network.arguments())


def test_a_network_by_its_import_path_is_the_same_space() -> None:
    named = with_space({"model": "torchvision.models:resnet18", "model_args": {"num_classes": 10},
                        "input_size": [3, 64, 64], "exclude": "layer4*"})  # fmt: skip
    network = torchvision.models.resnet18(num_classes=10)
    live = swap_blocks(network, torch.zeros(1, 3, 64, 64), exclude="layer4*")
    here, there = cost_table(NETWORK, arguments_of(live)), cost_table(named["space"], named["space_args"])
    assert here.candidates == there.candidates
    assert len(here.labels) == 6
    assert here.original_cost("macs") == there.original_cost("macs")
    one = Architecture.from_choices(named["space"], ["G(4)"] * 6, named["space_args"])
    assert Architecture.from_json(one.to_json()).id == one.id
    assert one.build().attention_points[-1] == "layer4"


def test_the_table_says_what_stays_and_why() -> None:
    text = str(swap_blocks(Twice(), torch.zeros(1, 3, 64, 64)))
    assert "block_00  last" in text
    assert "the stem: stem" in text
    assert "used 2 times in one forward pass: twice" in text.partition("Stays")[2]


class Bent(nn.Module):
    """A residual branch with a function whose options are given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(width, 8, 3, padding=1) for width in (3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.two(nn.functional.softplus(self.one(x), threshold=0.1))


def test_a_functions_options_are_kept_by_name() -> None:
    original, images = Bent(), torch.rand(1, 3, 8, 8)
    space = swap_blocks(original, images)
    assert [site.kind for site in space.findings.sites] == ["branch"]
    space.select({"block_00": "S"})
    assert torch.equal(space(images), original(images))


class Noisy(Bent):
    """Adds noise between its convolutions while it is trained."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.one(x)
        return x + self.two(y + self.draw() if self.training else y)


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.randn(8, 8), lambda: random.random(), lambda: np.random.rand()],  # noqa: NPY002  # as networks do
)
def test_what_a_network_does_in_training_mode_alone_is_not_lost(draw: Callable[[], Any]) -> None:
    with pytest.raises(
        SpaceError, match=r"the network does more between the convolutions in training mode \(2, as one\)"
    ):
        swap_blocks(Noisy(draw), torch.rand(1, 3, 8, 8))


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(3), conv()
        self.last = torch.jit.script(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv()))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.one(x)))


def test_a_scripted_part_stays() -> None:
    original, images = Scripted().eval(), torch.rand(1, 3, 8, 8)
    space = swap_blocks(original, images).eval()
    assert [site.path for site in space.findings.sites] == ["two"]
    space.select({"block_00": "S"})
    assert torch.equal(space(images), original(images))


class Scaled(PreActivation):
    """Scales its images to a size of its own, which is not that of the space."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.architecture = (8, 8), "own"

    def forward(self, x: Tensor) -> Tensor:
        assert self.architecture == "own"
        return super().forward(nn.functional.interpolate(x, self.input_size))


def test_attributes_of_ones_own_are_left_as_they_are() -> None:
    images = torch.rand(1, 3, 16, 16)
    for original, own in ((Scaled(), (8, 8)), (PreActivation(), None)):
        first = swap_blocks(original, images)
        built = Architecture.from_choices(NETWORK, ["S", "S"], arguments_of(first)).build()
        assert torch.equal(built.eval()(images), original.eval()(images))
        again = swap_blocks(built, images[..., :12])
        student = Architecture.from_choices(NETWORK, ["G(4)", "S"], arguments_of(again)).build()
        assert [one.input_size for one in (built, student)] == [own or (3, 16, 16), own or (3, 16, 12)]
        assert [input_size_of(one) for one in (built, student)] == [(3, 16, 16), (3, 16, 12)]
        assert student.architecture == "own" if own else student.architecture.choices["block_00"] == "G(4)"
        assert student.attention_points == again.points


def test_a_name_tells_sites_apart_and_no_field_that_follows_from_them() -> None:
    """Else each version that looks at one thing more would know no network of those before by its name."""
    network, images = PreActivation(), torch.rand(1, 3, 16, 16)
    findings = find(network, images)
    first, *others = findings.sites

    def name(**changed: Any) -> str:
        return hold(network, images, Findings((replace(first, **changed), *others), findings.kept))

    assert name(rigid="relu") == name()
    assert len({name(), name(activation="GELU()"), name(out_shape=(1, 2, 3)), name(path="other")}) == 4


@pytest.mark.parametrize(
    ("model", "arguments", "sentence"),
    [
        ("torchvision.models:nothing", {}, "the model 'torchvision.models:nothing' cannot be imported"),
        ("torchvision.models:resnet18", {"classes": 3}, "does not take the arguments {'classes': 3}"),
        ("torchvision.models:list_models", {}, "gives a list; it has to return a network"),
        ("live:ResNet-00000000", {}, "lives in the process that called swap_blocks"),
    ],
)
def test_what_cannot_be_made_is_told(model: str, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpaceError, match=sentence):
        cost_table(NETWORK, {"model": model, "model_args": arguments, "input_size": [3, 32, 32]})

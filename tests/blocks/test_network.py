"""Any network as a space: what holds for all of them, over torchvision's classifiers and nets written here."""

import random

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap import Architecture, search, swap_blocks
from nni_blockswap.architecture import NETWORK, cost_table, with_space
from nni_blockswap.blocks.network import NetworkSpace
from nni_blockswap.errors import SpaceError
from tests.cost.test_table import count_macs, count_params


class Functional(nn.Module):
    """Nested modules, functional ReLU, pre-activation, a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32))})
        self.norm1, self.conv1 = nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.twice = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner["a"](F.relu(self.stem(x))))
        x = x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        x = self.twice(F.relu(self.twice(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def vision(name: str, **arguments: object) -> nn.Module:
    network: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=10, **arguments)
    return network


QUICK = ["resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5"]
THOROUGH = [
    "resnet50", "wide_resnet50_2", "resnext50_32x4d", "vgg11_bn", "densenet121", "mobilenet_v3_small",
    "efficientnet_b0", "regnet_y_400mf",
]  # fmt: skip
NETWORKS = [
    *QUICK,
    "functional",
    *(pytest.param(name, marks=pytest.mark.slow) for name in THOROUGH),  # tens of seconds each
]


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = Functional() if name == "functional" else vision(name)
    images = torch.randn(8, 3, 64, 64)
    network.train()(images)  # statistics of its own
    return network.eval()


@pytest.fixture(scope="module", params=NETWORKS)
def own(request: pytest.FixtureRequest) -> tuple[nn.Module, NetworkSpace]:
    network = network_of(request.param)
    try:
        return network, swap_blocks(network, torch.zeros(1, 3, 64, 64))
    except SpaceError as refusal:
        pytest.skip(f"refused: {refusal}")


@pytest.mark.parametrize("training", [False, True])
def test_all_s_is_the_original_to_the_bit(own: tuple[nn.Module, NetworkSpace], training: bool) -> None:
    network, space = own
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    space.select({block.label: "S" for block in space.blocks()})
    found = original_of(space)
    teacher = found.build()
    assert type(teacher) is type(network)
    assert list(teacher.state_dict()) == list(before)
    teacher.load_state_dict(network.state_dict())
    answers = []
    for one in (network, teacher, space):
        one.train(training)
        torch.manual_seed(3)  # dropout
        with torch.no_grad():
            answers.append(one(images))
    network.eval().load_state_dict(before)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def original_of(space: NetworkSpace) -> Architecture:
    return Architecture.from_choices(NETWORK, dict.fromkeys((b.label for b in space.blocks()), "S"), args_of(space))


def args_of(space: NetworkSpace) -> dict[str, object]:
    from nni_blockswap.architecture import named_arguments

    return named_arguments(NetworkSpace, *space.trace_args, **space.trace_kwargs)


def test_costs_are_those_of_the_built_network(own: tuple[nn.Module, NetworkSpace]) -> None:
    network, space = own
    table, draw = cost_table(NETWORK, args_of(space)), random.Random(0)
    assert table.original("params") == count_params(network)
    for _ in range(3):
        one = Architecture.from_choices(NETWORK, [draw.choice(names) for names in table.candidates], args_of(space))
        built = one.build()
        assert one.params == count_params(built)
        assert one.macs == count_macs(built, torch.zeros(1, 3, 64, 64))


def test_a_student_keeps_what_is_not_swapped_and_learns(own: tuple[nn.Module, NetworkSpace]) -> None:
    network, space = own
    table = cost_table(NETWORK, args_of(space))
    student = Architecture.from_choices(NETWORK, [names[-1] for names in table.candidates], args_of(space)).build()
    theirs = network.state_dict()
    swapped = {part for site in space.findings.sites for part in site.parts}
    for name, value in student.state_dict().items():
        if name in theirs and not any(name.startswith(f"{part}.") for part in swapped):
            assert torch.equal(value, theirs[name]), name
    student.train()
    loss = F.cross_entropy(student(torch.randn(4, 3, 64, 64)), torch.arange(4))
    loss.backward()
    assert all(weight.grad is not None for weight in student.parameters() if weight.requires_grad)


def test_a_search_of_a_few_candidates(own: tuple[nn.Module, NetworkSpace]) -> None:
    _, space = own
    batches = [(torch.randn(4, 3, 64, 64), torch.arange(4))] * 2
    told: list[int] = []
    ranking = search(space, batches, budget="99%", samples=2, batch_size=8, device="cpu", precision="float32",
                     on_progress=lambda progress: told.append(progress.done))  # fmt: skip
    assert told == [1, 2]
    assert len(list(ranking)) == 2
    assert ranking.best.score == max(one.score for one in ranking)


def test_a_network_by_its_import_path_is_the_same_space() -> None:
    named = with_space({"model": "torchvision.models:resnet18", "model_args": {"num_classes": 10},
                        "input_size": [3, 64, 64], "exclude": "layer4*"})  # fmt: skip
    live = swap_blocks(vision("resnet18"), torch.zeros(1, 3, 64, 64), exclude="layer4*")
    here, there = cost_table(NETWORK, args_of(live)), cost_table(named["space"], named["space_args"])
    assert here.candidates == there.candidates
    assert len(here.labels) == 6
    assert here.original("macs") == there.original("macs")
    one = Architecture.from_choices(named["space"], ["G(4)"] * 6, named["space_args"])
    assert Architecture.from_json(one.to_json()).id == one.id
    assert one.build().attention_points[-1] == "layer4"


def test_the_table_says_what_stays_and_why() -> None:
    text = str(swap_blocks(network_of("functional"), torch.zeros(1, 3, 64, 64)))
    assert "block_01" in text
    assert "the stem: stem" in text
    assert "twice" in text.partition("Stays")[2]


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

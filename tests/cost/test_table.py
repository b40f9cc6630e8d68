import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from nni_blockswap.architecture import Architecture
from nni_blockswap.cost.resources import RESOURCES
from nni_blockswap.errors import BudgetError, SpaceError
from nni_blockswap.spaces import cost_table
from search_spaces.wide_resnet import WideResNetSpace
from tests.conftest import SMALL, WRN

PUBLISHED = {
    811_370: "B(4) S BG(2,16) G(4) G(8) B(4) G(4) S G(16) G(2) S G(N/16) G(N/8) G(2) G(2) BG(2,M/8) BG(2,M/4) G(8)",
    217_050: "BG(2,16) BG(2,16) B(4) G(N) BG(2,M/16) G(N) BG(2,8) B(2) BG(2,M/2) G(N/16) BG(2,M/4) BG(2,M/8) G(N/2) "
    "BG(2,16) BG(2,8) BG(2,16) BG(2,8) BG(2,M/4)",
}


def count_params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, image: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers, counted while the network runs."""
    total = 0

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight[0].numel() * output[0].numel()

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    network.eval()(image)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(
    ("depth", "width", "choice", "params"),
    [
        (40, 2, "S", 2_243_546),
        (16, 2, "S", 691_674),
        (40, 1, "S", 563_930),
        (40, 2, "G(4)", 814_650),
        (40, 2, "B(2)", 431_834),
        (40, 2, "G(N)", 293_514),
    ],
)
def test_known_networks(depth: int, width: int, choice: str, params: int) -> None:
    blocks = (depth - 4) // 2
    network = Architecture.from_choices(WRN, [choice] * blocks, {"depth": depth, "width": width})
    assert network.params == params == count_params(network.build())


@pytest.mark.parametrize(("params", "choices"), PUBLISHED.items())
def test_published_networks(params: int, choices: str) -> None:
    network = Architecture.from_choices(WRN, choices.split())
    built = network.build()
    assert network.params == params == count_params(built)
    macs = {811_370: 131.88e6, 217_050: 38.38e6}[params]
    assert network.macs == count_macs(built, torch.zeros(1, 3, 32, 32)) == pytest.approx(macs, abs=5e3)


def test_macs_of_the_teacher() -> None:
    assert Architecture.from_choices(WRN, ["S"] * 18).macs == pytest.approx(327.60e6, abs=5e3)


def test_size_of_the_space() -> None:
    table = cost_table(WRN)
    sizes = [len(names) for names in table.candidates]
    assert sizes == [16, *[12] * 5, 17, *[14] * 5, 18, *[16] * 5]
    assert table.column("params").reach == (146_538, 2_243_546)


@pytest.mark.parametrize(
    "space_args",
    [
        SMALL,
        {"depth": 16, "width": 2, "extra": ["BG(4,M/2)", "BG(4,M/8)"]},
        {"depth": 22, "width": 1, "num_classes": 7},
    ],
)
def test_tables_equal_built_networks(space_args: dict[str, object]) -> None:
    table, draw = cost_table(WRN, space_args), random.Random(0)
    for _ in range(70):
        choices = [draw.choice(names) for names in table.candidates]
        one = Architecture.from_choices(WRN, choices, space_args)
        built = one.build()
        assert isinstance(built, WideResNetSpace)
        assert one.params == count_params(built)
        assert one.macs == count_macs(built, torch.zeros(1, *built.input_size))


def test_narrowing() -> None:
    table = cost_table(WRN, SMALL)
    narrow = table.narrowed({"block_01": ["G(N)", "S"]})
    assert narrow.candidates[0] == table.candidates[0]
    assert narrow.candidates[1] == ("S", "G(N)")
    assert narrow.total("params", (0, 1, 0)) == Architecture.from_choices(WRN, ["S", "G(N)", "S"], SMALL).params
    assert narrow.total("macs", narrow.original()) == table.total("macs", table.original())
    with pytest.raises(SpaceError, match="'block_99' is not a block of the space; its blocks are block_00"):
        table.narrowed({"block_99": ["S"]})
    with pytest.raises(SpaceError, match=r"'G\(3\)' does not fit here: 3 does not divide 16"):
        table.narrowed({"block_00": ["G(3)"]})
    with pytest.raises(SpaceError, match=r"'BG\(4,2\)' is not a candidate of block_02; choose from S"):
        table.narrowed({"block_02": ["BG(4,2)"]})
    with pytest.raises(SpaceError, match="block_00 has no candidate left"):
        table.narrowed({"block_00": []})


def test_the_originals_costs_outlive_its_candidates() -> None:
    original = Architecture.from_choices(WRN, ["S", "S", "S"], SMALL)
    narrow = cost_table(WRN, SMALL).narrowed({"block_00": ["B(4)", "B(2)"]})
    assert narrow.names(narrow.original())["block_00"] == "B(2)"  # the dearest that is left
    for table in (narrow, narrow.narrowed({"block_01": ["G(2)"]})):
        assert (table.original_cost("params"), table.original_cost("macs")) == (original.params, original.macs)


class Megabytes:
    """Of weights in float32."""

    name, unit, suffixes = "megabytes", "MB", {}  # type: ignore[var-annotated]

    def read(self, modules: Sequence[nn.Module], run: object) -> float:
        return sum(4 * p.numel() for module in modules for p in module.parameters(recurse=False)) / self.size

    size = 1e6


class Bytes(Megabytes):
    name, unit, size = "own_bytes", "bytes", 1.0


class Counted(Bytes):
    """As torch's sums give it."""

    name = "own_counted"

    def read(self, modules: Sequence[nn.Module], run: object) -> Any:
        return torch.tensor(super().read(modules, run)).long()


class Halves(Bytes):
    """In bfloat16."""

    size = 2.0


def test_costs_are_whole_numbers_of_the_resource_as_it_is_now() -> None:
    RESOURCES.register("megabytes", Megabytes())  # type: ignore[arg-type]
    RESOURCES.register("own_bytes", Bytes())  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"'megabytes' gives \d\.\d+, and a cost is a whole number from 0 on"):
        cost_table(WRN, SMALL, ["megabytes"])
    table = cost_table(WRN, SMALL, ["own_bytes"])
    assert table.original_cost("own_bytes") == 4 * table.original_cost("params")
    assert type(table.column("own_bytes").fixed) is int
    RESOURCES.register("own_counted", Counted())
    assert cost_table(WRN, SMALL, ["own_counted"]).original_cost("own_counted") == table.original_cost("own_bytes")
    RESOURCES.register("own_bytes", Halves())  # type: ignore[arg-type]
    assert cost_table(WRN, SMALL, ["own_bytes"]).original_cost("own_bytes") == 2 * table.original_cost("params")


class Mistaken(Bytes):
    name = "mistaken"

    def read(self, modules: Sequence[nn.Module], run: object) -> Any:
        return modules[0].wattage


class Unplugged(Mistaken):
    name = "unplugged"

    def measure(self, build: object, counted: object) -> Any:
        raise OSError("no power meter")


def test_a_resource_that_fails_is_named_and_not_the_space() -> None:
    for own in (Mistaken(), Unplugged()):
        RESOURCES.register(own.name, own)
    with pytest.raises(BudgetError, match=r"the resource 'mistaken' cannot say .* 'wattage' \(AttributeError\)\.$"):
        cost_table(WRN, SMALL, ["mistaken"])
    with pytest.raises(BudgetError, match=r"the resource 'unplugged' cannot say .*: no power meter \(OSError\)\.$"):
        cost_table(WRN, SMALL, ["unplugged"])

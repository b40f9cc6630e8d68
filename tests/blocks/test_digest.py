import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap.blocks.digest import digest, digest_of_function


class Net(nn.Module):
    kinds = frozenset({"a", "b", "c"})

    def __init__(self, **told: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3)
        vars(self).update(told)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if "a" in {"a", "b", "c"} else x


def scaled(by: float) -> Callable[[Tensor], Tensor]:
    return (lambda x: x * 0.5) if by == 0.5 else (lambda x: x * 0.25)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"scale": 1.0}, {"scale": 2.0}),
        ({"act": nn.functional.relu}, {"act": nn.functional.silu}),
        ({"act": torch.relu}, {"act": torch.sigmoid}),
        ({"act": scaled(0.5)}, {"act": scaled(0.25)}),
        ({"act": partial(nn.functional.leaky_relu, negative_slope=0.1)}, {"act": partial(nn.functional.leaky_relu)}),
        ({"sizes": {"low": [1, 2]}}, {"sizes": {"low": [1, 3]}}),
        ({"mask": torch.tensor([0.0, 1.0])}, {"mask": torch.tensor([1.0, 0.0])}),
    ],
)
def test_a_public_attribute_tells_networks_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert digest(Net(**one)) == digest(Net(**one))
    assert digest(Net(**one)) != digest(Net(**other))


def test_the_code_of_a_class_a_weight_and_what_stands_beside_tell_networks_apart() -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        return 0.5 * self.conv(x)

    edited = type("Net", (Net,), {"forward": forward})
    again = type("Net", (Net,), {"forward": Net.forward})
    moved = Net()
    with torch.no_grad():
        moved.conv.bias[0] += 1e-6
    assert len({digest(one) for one in (edited(), again(), moved, Net())} | {digest(Net(), "beside")}) == 5


def test_mode_copies_private_attributes_and_objects_do_not() -> None:
    assert digest(Net().eval()) == digest(Net()) == digest(Net(_last=3))
    assert digest(Net(logger=object())) == digest(Net(logger=object()))


def test_it_is_the_same_in_another_process() -> None:
    """Where sets have another order and objects other addresses."""
    told = "act=torch.nn.functional.relu, names={'x', 'y', 'z'}"
    code = f"import torch; from tests.blocks.test_digest import Net, digest; print(digest(Net({told})))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest(Net(act=nn.functional.relu, names={"x", "y", "z"}))


def test_a_function_that_stands_in_what_it_takes_from_around_it() -> None:
    def of(weight: float) -> Callable[..., Any]:
        table: dict[str, Any] = {"weight": weight}

        def loss(outputs: Tensor, labels: Tensor) -> Tensor:
            return (outputs - labels).sum() * table["weight"]

        table["loss"] = [loss, table]
        return loss

    assert digest_of_function(of(1)) == digest_of_function(of(1)) != digest_of_function(of(2))


def test_tensors_without_numbers_are_told_by_their_shape_and_type() -> None:
    def of(*shape: int, dtype: torch.dtype = torch.float32) -> str:
        return digest(Net(mask=torch.zeros(*shape, dtype=dtype, device="meta")).to("meta"))

    assert of(2) == of(2)
    assert len({of(2), of(3), of(2, dtype=torch.int64)}) == 3


@pytest.mark.parametrize("kind", [list, tuple, set, dict.fromkeys])
def test_large_containers_are_told_by_their_length_and_first_entries(kind: Callable[[Any], Any]) -> None:
    class Counted(int):
        shown = 0

        def __repr__(self) -> str:
            Counted.shown += 1
            return super().__repr__()

    def of(*numbers: int) -> str:
        return digest(Net(table=kind(Counted(number) for number in numbers)))

    whole = of(*range(5000))
    assert Counted.shown <= 1000
    assert whole == of(*range(5000)) != of(*range(5001))
    assert of(*range(1000)) != of(*range(1, 1001))

"""Proxies from outside the package."""

import subprocess
import sys
from pathlib import Path

import pytest

from nni_blockswap.errors import ConfigError
from nni_blockswap.scoring.proxies import PAPER, PROXIES, Score, make_proxy, register

SOURCE = """
from nni_blockswap.scoring.proxies import Score, register

@register
class Depth:
    name, higher_is_better, needs_weight_gradients = "depth", True, False

    def measure(self, network, task, batch):
        return Score(float(len(network.blocks())))

nothing = 3
"""


class Mine:
    name, higher_is_better, needs_weight_gradients = "mine", True, False

    def measure(self, network, task, batch) -> Score:
        return Score(1.0)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROXIES, "_loaded", {})


def test_a_class_is_registered_under_its_name() -> None:
    assert register(Mine) is Mine
    assert isinstance(make_proxy("mine"), Mine)
    assert list(PROXIES)[-1] == "mine"


def test_fisher_potential_is_the_first_and_the_papers_metrics_follow() -> None:
    assert list(PROXIES)[:4] == ["fisher", "grad_norm", "l2_norm", "accuracy"] == list(PAPER)


def test_the_same_class_again_takes_the_place_of_the_first() -> None:
    register(Mine)
    again = type("Mine", (Mine,), {"__module__": Mine.__module__, "__qualname__": Mine.__qualname__})
    register(again)  # a notebook's cell that was run again
    assert type(make_proxy("mine")) is again


def test_a_name_is_given_once() -> None:
    thief = type("Thief", (Mine,), {"name": "fisher"})
    with pytest.raises(ConfigError, match=r"a proxy 'fisher' already, nni_blockswap\.scoring\.proxies\.fisher:Fisher"):
        register(thief)


@pytest.mark.parametrize("name", ["a+b", "a:b", "a b", ""])
def test_a_name_can_stand_in_a_combination(name: str) -> None:
    with pytest.raises(ConfigError, match="a proxy's name has no"):
        register(type("Named", (Mine,), {"name": name}))


def test_a_class_that_cannot_measure_is_no_proxy() -> None:
    with pytest.raises(ConfigError, match="is no proxy: a class that has name, higher_is_better"):
        register(int)  # type: ignore[type-var]


def test_another_process_imports_it_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "house_of_mine.py").write_text(SOURCE)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from nni_blockswap.scoring.proxies import make_proxy\n"
        "print(make_proxy('house_of_mine:Depth').name, make_proxy('depth').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout.strip() == "depth depth"


def test_what_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "house_of_yours.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"'nowhere:Depth' cannot be imported \(ModuleNotFoundError"):
        make_proxy("nowhere:Depth")
    with pytest.raises(ConfigError, match=r"'house_of_yours:Height' .* has no 'Height'"):
        make_proxy("house_of_yours:Height")
    with pytest.raises(ConfigError, match="3 is no proxy"):
        make_proxy("house_of_yours:nothing")

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_blockswap import Architecture
from nni_blockswap.errors import SpaceError
from nni_blockswap.spaces import load_space, named_arguments
from search_spaces.wide_resnet import WideResNetSpace
from tests.conftest import SMALL, WRN


def test_list_and_mapping_in_any_spelling_mean_the_same() -> None:
    one = Architecture.from_choices(WRN, ["g(n)", "BG(2,1)", "S"], SMALL)
    two = Architecture.from_choices(WRN, {"block_02": "s", "block_01": "B(2)", "block_00": "G(16)"}, SMALL)
    assert one == two
    assert one.id == two.id
    assert list(two.choices.items()) == [("block_00", "G(16)"), ("block_01", "B(2)"), ("block_02", "S")]


def test_id_names_space_arguments_and_choices() -> None:
    one = Architecture.from_choices(WRN, ["S", "S", "S"], SMALL)
    assert one.id == Architecture.from_choices(WRN, ["S"] * 3, {**SMALL, "num_classes": 10}).id  # the default
    assert one.id != Architecture.from_choices(WRN, ["S"] * 3, {**SMALL, "num_classes": 9}).id
    assert one.id != Architecture.from_choices(WRN, ["S", "S", "B(2)"], SMALL).id
    assert one.id == one.scored(1.0, {"seed": 3}).id
    command = f"from nni_blockswap import Architecture as A; print(A.from_choices({WRN!r}, ['S']*3, {SMALL!r}).id)"
    other = subprocess.run([sys.executable, "-W", "ignore", "-c", command], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == one.id


class Plain(WideResNetSpace):
    """A space that changes its base, but not its constructor."""

    attention_points = ()


class Narrow(WideResNetSpace):
    """A space that hands on what it does not know itself."""

    def __init__(self, stem: int = 3, **others: Any) -> None:
        super().__init__(**others)


class ByPosition(WideResNetSpace):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)


def test_a_space_may_inherit_its_constructor_or_hand_arguments_on() -> None:
    base = Architecture.from_choices(WRN, ["S"] * 3, SMALL)
    for name, arguments in (("Plain", base.space_args), ("Narrow", {"stem": 3, **SMALL})):
        one = Architecture.from_choices(f"{__name__}:{name}", ["S"] * 3, SMALL)
        assert one.space_args == arguments
        assert (one.params, one.macs) == (base.params, base.macs)
        assert sum(weight.numel() for weight in one.build().parameters()) == base.params
    with pytest.raises(SpaceError, match="unexpected keyword argument 'dept'"):
        Architecture.from_choices(f"{__name__}:Narrow", ["S"] * 3, {**SMALL, "dept": 16})
    with pytest.raises(TypeError, match="arguments are given by name"):
        named_arguments(ByPosition, 10, 1)


def test_immutable() -> None:
    one = Architecture.from_choices(WRN, ["S"] * 3, SMALL)
    with pytest.raises(FrozenInstanceError):
        one.params = 1  # type: ignore[misc]


def test_file_round_trip(tmp_path: Path) -> None:
    one = Architecture.from_choices(WRN, ["S", "G(N/8)", "B(4)"], SMALL).scored(0.25, {"proxy": "fisher", "seed": 1})
    one.save(tmp_path / "deep" / "one.json")
    assert Architecture.load(tmp_path / "deep" / "one.json") == one
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["one.json"]


def test_parameters_and_macs_in_an_edited_file_are_counted_anew(tmp_path: Path) -> None:
    one = Architecture.from_choices(WRN, ["S", "S", "S"], SMALL)
    one.save(tmp_path / "one.json")
    content = json.loads((tmp_path / "one.json").read_text())
    content |= {"params": 1, "macs": 1}
    (tmp_path / "one.json").write_text(json.dumps(content))
    assert Architecture.load(tmp_path / "one.json") == one


def test_costs_of_a_counted_resource_of_ones_own_are_read_back(tmp_path: Path) -> None:
    one = Architecture.from_choices(WRN, ["S", "S", "S"], SMALL)
    one = replace(one, costs={**one.costs, "memory": 12})
    one.save(tmp_path / "one.json")
    assert Architecture.load(tmp_path / "one.json") == one


def test_build_holds_only_the_chosen_branches_and_draws_from_the_global_generator() -> None:
    one = Architecture.from_choices(WRN, ["B(4)", "G(2)", "S"], SMALL)
    torch.manual_seed(3)
    first = one.build()
    torch.manual_seed(3)
    again = one.build()
    assert sum(p.numel() for p in first.parameters()) == one.params
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert [type(block.branch).__name__ for block in first.blocks()] == ["Sequential"] * 3
    assert first(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_fresh_weights_follow_the_rule() -> None:
    """Normal, std sqrt(2 / (k^2 C_out)), C_out not divided by the groups; BN 1 and 0; biases 0."""
    network = Architecture.from_choices(WRN, ["S", "S", "G(N/4)"], {**SMALL, "width": 4}).build()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 2000:
            expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.08)
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
    assert network.fc.bias.eq(0).all()


def test_teacher() -> None:
    one = Architecture.from_choices(WRN, ["B(4)", "G(2)", "S"], SMALL)
    assert set(one.teacher().choices.values()) == {"S"}
    assert one.teacher().space_args == one.space_args
    assert one.teacher() == Architecture.original(WRN, SMALL)


def test_a_cost_of_a_resource_that_another_process_had_is_spelled_by_its_name() -> None:
    one = Architecture.from_choices(WRN, ["S"] * 3, SMALL)
    kept = {**one.to_json(), "edge": 1234, "provenance": {"measured": {"edge": {"when": "2026"}}}}
    assert Architecture.from_json(kept).spelled_costs.endswith("MACs, 1,234 edge")


def test_what_is_counted_cannot_be_called_measured() -> None:
    one = Architecture.from_choices(WRN, ["S"] * 3, SMALL)
    kept = {**one.to_json(), "params": 1, "provenance": {"measured": {"params": {}}}}
    assert Architecture.from_json(kept).params == one.params


def test_where_no_block_has_an_original_the_teacher_is_what_has_most_parameters() -> None:
    space = "benchmarks.nas_bench_macro_space:NasBenchMacroSpace"
    smallest = Architecture.from_choices(space, ["Identity"] * 8)
    assert set(smallest.teacher().choices.values()) == {"MB6_K5"}


@pytest.mark.parametrize(
    ("space", "choices", "space_args", "sentence"),
    [
        (WRN, ["S"] * 2, SMALL, "the space has 3 blocks; 2 choices were given"),
        (WRN, {"block_00": "S", "block_01": "S"}, SMALL, "block_02 has no choice; give every block one"),
        (WRN, {"block_00": "S", "block_1": "S"}, SMALL, "'block_1' is not a block of the space"),
        (WRN, ["S", "S", "Z"], SMALL, "'Z' is not a substitute"),
        (WRN, ["S", "S", "BG(4,2)"], SMALL, r"'BG\(4,2\)' is not a candidate of block_02; choose from S"),
        (WRN, ["S"] * 3, {"deepness": 10}, "do not fit .*unexpected keyword argument 'deepness'"),
        (WRN, ["S"] * 3, {"depth": 11}, r"the depth of a wide ResNet is 6n \+ 4 .* not 11"),
        ("search_spaces.wide_resnet", ["S"], {}, "a space is written module:Class"),
        ("search_spaces.nowhere:Space", ["S"], {}, "cannot be imported"),
        ("search_spaces.wide_resnet:Nothing", ["S"], {}, "cannot be imported"),
        ("pathlib:Path", ["S"], {}, "'pathlib:Path' is not a search space; derive it from"),
    ],
)
def test_bad_input_gets_one_sentence(space: str, choices: list[str], space_args: dict[str, int], sentence: str) -> None:
    with pytest.raises(SpaceError, match=sentence) as caught:
        Architecture.from_choices(space, choices, space_args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"), [("{", "can be read"), ("[]", "lacks choices and space"), ("{}", "lacks")]
)
def test_bad_files(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(SpaceError, match=sentence):
        Architecture.load(tmp_path / "bad.json")
    with pytest.raises(SpaceError, match="no architecture can be read"):
        Architecture.load(tmp_path / "absent.json")


def test_load_space_gives_the_class() -> None:
    from search_spaces.wide_resnet import WideResNetSpace

    assert load_space(WRN) is WideResNetSpace


def test_a_trials_parameters_are_read_back() -> None:
    one = Architecture.from_choices(WRN, ["B(2)", "G(4)", "BG(2,4)"], SMALL).scored(1.5, {"proxy": "fisher"})
    given = one.to_parameters(rank=2)
    assert json.loads(json.dumps(given)) == given
    assert (given["block_01"], given["params"], given["rank"]) == ("G(4)", one.params, 2)
    read = Architecture.from_parameters({**given, "method": "blockswap", "seed": 3, "params": 5})
    assert (read.id, read.score, read.params, read.provenance) == (one.id, 1.5, one.params, {"rank": 2})
    assert Architecture.from_parameters({**given, "score": None}).score is None


@pytest.mark.parametrize("score", [1.5, None])
def test_a_trial_knows_what_its_student_was_measured_to_take(score: float | None) -> None:
    one = Architecture.from_choices(WRN, ["B(2)", "G(4)", "BG(2,4)"], SMALL)
    sources = {"latency": {"when": "2026", "where": {"threads": 1}}}
    timed = replace(one, costs={**one.costs, "latency": 1234}, score=score, provenance={"measured": sources})
    given = timed.to_parameters(rank=1)
    assert json.loads(json.dumps(given)) == given
    read = Architecture.from_parameters(given)
    assert (read.costs["latency"], read.provenance["measured"], read.score) == (1234, sources, score)
    assert Architecture.from_json(read.to_json()) == read  # as its folder keeps it
    assert "latency" not in Architecture.from_parameters({**given, "latency": "fast"}).costs


def test_choices_alone_are_understood_where_a_space_is_named_beside_them() -> None:
    """As NNI's own tuners hand them out."""
    one = Architecture.from_choices(WRN, ["B(2)", "G(4)", "BG(2,4)"], SMALL)
    assert Architecture.from_parameters(dict(one.choices), WRN, SMALL).id == one.id
    with pytest.raises(SpaceError, match="the tuner names no space; add --space"):
        Architecture.from_parameters(one.choices)
    with pytest.raises(SpaceError, match="'block_77' is not a block of the space"):
        Architecture.from_parameters({**one.choices, "block_77": "S"}, WRN, SMALL)

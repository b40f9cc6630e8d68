"""Comparisons: who competes, that each is told apart, and that the trial trains what it is told to."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nni_blockswap.architecture import Architecture
from nni_blockswap.cost.budget import Budget
from nni_blockswap.errors import BudgetError, ConfigError, SpaceError
from nni_blockswap.experiment.classargs import argument_faults
from nni_blockswap.experiment.students import FAILED, SUCCEEDED, Students, read, result_of
from nni_blockswap.searching import SearchSettings, make_method, search, table_of
from nni_blockswap.studies import comparison
from nni_blockswap.studies.comparison import METHODS, Comparison, contestants, faults
from nni_blockswap.training.student import begin
from tests.studies.test_rank_study import squared_norm
from trial import distill

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
ARGUMENTS = {"depth": 10, "width": 1, "in_channels": 1, "image_size": 8}
SETTINGS = SearchSettings(
    space=SPACE,
    data="digits",
    space_args=ARGUMENTS,
    data_options={"image_size": 8},
    batch_size=8,
    budgets=["40K"],
    tolerance=0.2,
    samples=6,
    device="cpu",
)

CONDENSENET = {
    "method": "condensenet",
    "space": "search_spaces.condensenet:CondenseNetSpace",
    "space_args": {"stages": [1, 1], "growth": [4, 8], "in_channels": 1, "image_size": 8},
    "recipe": {"epochs": 300, "batch_size": 64, "weight_decay": 1e-4},
}

COMPARISON = Comparison(
    methods=METHODS,
    budgets=["30K", "40K"],
    best_of=[2, 6],
    single=["G(4)"],
    one_swap=["G(4)"],
    reduced=[{"depth": 10, "width": 2}],
    others=[CONDENSENET],
    seeds=2,
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return contestants(COMPARISON, SETTINGS, tmp_path_factory.mktemp("searches"))


def one(compared, method, variant, seed=0):
    (found,) = [p for p in compared if (p["method"], p["variant"], p["seed"]) == (method, variant, seed)]
    return found


def architecture(parameters):
    choices = {label: name for label, name in parameters.items() if label.startswith("block_")}
    return Architecture.from_choices(parameters["space"], choices, parameters["space_args"])


def test_every_method_competes_at_every_budget_and_seed(compared):
    assert len(compared) == 2 * (2 * (len(METHODS) + 2) + 1 + 3 + 1 + 1) == COMPARISON.size(blocks=3)
    assert [p["seed"] for p in compared] == sorted(p["seed"] for p in compared)
    for parameters in compared:
        assert architecture(parameters).id == parameters["architecture_id"]
        json.dumps(parameters, allow_nan=False)
        if parameters["variant"] == "40K" and "nonzero" not in parameters:
            assert 32_000 <= parameters["params"] <= 48_000


def test_blockswap_is_the_best_of_its_search(compared):
    ranking = search(SETTINGS)[0]
    assert one(compared, "blockswap", "40K")["architecture_id"] == ranking.best.id
    assert one(compared, "blockswap", "40K", 1)["architecture_id"] == ranking.best.id


def test_random_networks_differ_and_are_no_members_of_the_searchs_sample():
    # five million architectures meet this budget, so that a common one would be no accident
    settings = replace(SETTINGS, space_args={**ARGUMENTS, "depth": 16}, budgets=["50%"], tolerance=None)
    as_many = Comparison(methods=["random"], seeds=settings.samples)  # from the same draw they would be the sample
    drawn = [architecture(parameters).choices for parameters in contestants(as_many, settings, "unused")]
    table = table_of(settings)
    found = make_method(settings, table, settings.parsed()[0]).ask().rows
    both = [*drawn, *(table.names(indices) for indices in found)]
    assert len({tuple(choices.items()) for choices in both}) == 2 * settings.samples


def test_another_proxys_network_is_the_best_of_the_same_sample_by_that_proxy(compared):
    found = one(compared, "l2_norm", "40K")
    norms = {searched.id: squared_norm(searched.choices.values()) for searched in search(SETTINGS)[0].architectures}
    assert found["architecture_id"] == max(norms, key=norms.get)
    assert found["score"] == pytest.approx(max(norms.values()), rel=1e-5)


def test_pruned_networks_are_the_original_with_the_budgets_parameters(compared):
    for method in ("l1-pruning", "snip"):
        found = one(compared, method, "30K")
        assert (found["params"], found["nonzero"]) == (30_000, 30_000)
        assert architecture(found).choices == dict.fromkeys(architecture(found).choices, "S")


def test_single_and_reduced_networks(compared):
    single, reduced = one(compared, "single", "G(4)"), one(compared, "reduced", "depth=10 width=2")
    assert set(architecture(single).choices.values()) == {"G(4)"}
    assert reduced["space_args"]["width"] == 2
    assert set(architecture(reduced).choices.values()) == {"S"}


def test_the_best_of_fewer_samples_is_the_best_of_those_drawn_first(compared):
    table = table_of(SETTINGS)
    drawn = make_method(SETTINGS, table, Budget.parse("40K", SETTINGS.tolerance)).ask().rows
    first = [table.names(indices) for indices in drawn[:2]]
    scores = {tuple(ranked.choices.values()): ranked.score for ranked in search(SETTINGS)[0].architectures}
    expected = max(first, key=lambda choices: scores[tuple(choices.values())])
    assert architecture(one(compared, "best of 2", "40K")).choices == expected
    best_of_all = one(compared, "best of 6", "40K")["architecture_id"]
    assert best_of_all == one(compared, "blockswap", "40K")["architecture_id"]


def test_more_samples_cannot_be_the_best_of_than_are_drawn():
    (fault,) = faults(Comparison(methods=[], best_of=[2, 7]), SETTINGS)
    assert "best of 7 samples is asked for, and samples is 6" in str(fault)


def test_the_first_of_a_draw_are_of_a_search_that_draws():
    (fault,) = faults(Comparison(methods=[], best_of=[2]), replace(SETTINGS, method="evolution"))
    assert "first of a uniform draw, and method is evolution" in str(fault)


BESIDE_A_LIBRARY = replace(SETTINGS, tolerance=None, proxy="library", library="unread")


@pytest.fixture(scope="module")
def beside_a_library(tmp_path_factory):
    compared = Comparison(methods=["blockswap", "random"], best_of=[2, 6], seeds=2)
    return contestants(compared, BESIDE_A_LIBRARY, tmp_path_factory.mktemp("beside"))


def test_beside_a_library_random_networks_use_up_the_budget_as_blockswaps_does(beside_a_library):
    """A library's choice may be far below; what is drawn at random is compared to what is searched at random."""
    table = table_of(BESIDE_A_LIBRARY)
    budget = Budget.parse("40K")
    for parameters in beside_a_library:
        assert budget.admits(table, {"params": parameters["params"]}), parameters
    plain = replace(SETTINGS, tolerance=None)
    alone = contestants(Comparison(methods=["random"], seeds=2), plain, "unused")
    assert [one(beside_a_library, "random", "40K", seed) for seed in (0, 1)] == alone


def test_beside_a_library_the_best_of_all_samples_is_blockswaps(beside_a_library):
    best_of_all = one(beside_a_library, "best of 6", "40K")["architecture_id"]
    assert best_of_all == one(beside_a_library, "blockswap", "40K")["architecture_id"]


def test_beside_a_library_each_method_has_to_reach_what_it_is_held_to():
    beyond = replace(BESIDE_A_LIBRARY, budgets=["500K"])  # the original has 78K: below it is everything
    assert faults(Comparison(methods=["library", "front"]), beyond) == []
    for one_more in ("random", "blockswap"):
        (fault,) = faults(Comparison(methods=["library", one_more]), beyond)
        assert isinstance(fault, BudgetError)


def test_several_random_architectures_for_each_seed_are_all_different():
    many = Comparison(methods=["random"], random=4, seeds=2)
    found = contestants(many, SETTINGS, "unused")
    assert [p["seed"] for p in found] == [0] * 4 + [1] * 4
    assert len({p["architecture_id"] for p in found}) == 8 == many.size(blocks=3)


def test_one_block_at_a_time_is_swapped(compared):
    for block in range(3):
        found = architecture(one(compared, "one swap", f"block_{block:02d} G(4)"))
        assert list(found.choices.values()) == ["G(4)" if position == block else "S" for position in range(3)]


def test_a_network_of_another_kind_has_its_own_recipe(compared):
    found = one(compared, "condensenet", "", seed=1)
    assert (found["space"], found["space_args"]["growth"]) == (CONDENSENET["space"], [4, 8])
    assert found["recipe"] == CONDENSENET["recipe"]


def test_a_network_of_another_kind_says_what_it_is():
    (fault,) = faults(Comparison(methods=[], others=[{"method": "condensenet"}]), SETTINGS)
    assert "has method, space, recipe and maybe space_args, not method" in str(fault)


def test_a_single_type_that_is_offered_on_request_alone_needs_no_space_of_its_own():
    (found,) = contestants(Comparison(methods=[], single=["BG(4,M/2)"], seeds=1), SETTINGS, "unused")
    assert found["space_args"]["extra"] == ["BG(4,M/2)"]
    assert found["params"] == architecture(found).params


@pytest.mark.parametrize(
    ("space", "arguments", "params", "macs"),
    [
        (SPACE, {"depth": 16, "width": 1}, 0.175e6, None),
        (SPACE, {"depth": 16, "width": 2}, 691_674, None),
        (SPACE, {"depth": 40, "width": 1}, 563_930, None),
        ("search_spaces.resnet:ResNetSpace", {"depth": 18, "late_width": 0.5}, 3.2e6, 909e6),
    ],
)
def test_the_papers_reduced_networks_have_the_papers_sizes(space, arguments, params, macs):
    blocks = {16: 6, 40: 18, 18: 8}[arguments["depth"]]
    found = Architecture.from_choices(space, ["S"] * blocks, arguments)
    exact = params if isinstance(params, int) else pytest.approx(params, rel=0.01)  # published rounded
    assert found.params == exact
    if macs:
        assert found.macs == pytest.approx(macs, rel=0.005)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"methods": ["magic"]}, ConfigError, "no method 'magic'; choose from blockswap"),
        ({"methods": "random"}, ConfigError, "methods are a list"),
        ({"seeds": 0}, ConfigError, "seeds must be above 0, not 0"),
        ({"budget": ["1K"]}, ConfigError, "no 'budget'; it has methods, budgets"),
        ({"methods": ["snip"], "budgets": ["macs=1M"]}, ConfigError, "pruning counts parameters"),
        ({"methods": ["random"], "budgets": ["1K"]}, BudgetError, "800 to 1,200"),
        ({"methods": [], "single": ["G(3)"]}, SpaceError, r"G\(3\)"),
        ({"single": [4]}, ConfigError, "each of a comparison's single is text, not 4"),
        ({"reduced": ["depth=10"]}, ConfigError, r"reduced is a mapping, as in {depth: 16}, not 'depth=10'"),
        ({"others": ["condensenet"]}, ConfigError, "others is a mapping, .*, not 'condensenet'"),
        ({"methods": [], "others": [CONDENSENET | {"recipe": None}]}, ConfigError, "recipe .* is a mapping, not None"),
        ({"methods": [], "others": [CONDENSENET | {"space": 3}]}, ConfigError, "space of one of others is text, not 3"),
    ],
)
def test_a_faulty_comparison_is_named_in_one_sentence(arguments, error, match):
    with pytest.raises(error, match=match):
        contestants(Comparison.read(arguments), SETTINGS, "unused")


def test_all_faults_are_found_at_once_and_before_any_search(monkeypatch):
    faulty = Comparison(
        methods=["blockswap", "snip"],
        budgets=["40K", "1K", "abc", "macs=300K"],
        single=["G(3)", "G(4)"],
        reduced=[{"depth": 11}],
    )
    found = [str(error) for error in faults(faulty, SETTINGS)]
    assert len(found) == 6, found  # "abc" is no budget to search and none to prune to
    assert sum("abc" in sentence for sentence in found) == 2
    for part in ("G(3)", "11", "800 to 1,200", "pruning counts parameters"):
        assert sum(part in sentence for sentence in found) == 1, (part, found)

    def refuse(*arguments):
        raise AssertionError("a search was started")

    monkeypatch.setattr(comparison, "search", refuse)
    with pytest.raises(SpaceError):
        contestants(faulty, SETTINGS, "unused")


def test_check_names_a_faulty_comparison_before_anything_starts():
    arguments = {"space": SPACE, "data": "digits", "budget": "40K"}
    assert argument_faults({**arguments, "comparison": {"seeds": 3}}) == []
    assert "has 6 trials and students is 7" in argument_faults({**arguments, "students": 7, "comparison": {}})[0]
    assert "no method 'magic'" in argument_faults({**arguments, "comparison": {"methods": ["magic"]}})[0]
    assert "comparison is a mapping" in argument_faults({**arguments, "comparison": 3})[0]


def test_trials_of_one_architecture_are_told_apart(compared, tmp_path):
    students = Students.of(tmp_path / "students.json", compared)
    pruned = [one(compared, "l1-pruning", "30K", 0), one(compared, "l1-pruning", "30K", 1)]
    handed_out = [students.next() for _ in compared]
    assert handed_out == compared
    assert students.next() is None
    # NNI may pair a metric with another trial's parameters: what the metric says of itself counts
    named = {name: pruned[1][name] for name in ("architecture_id", "method", "variant", "seed")}
    students.succeeded(*result_of(pruned[0], {"default": 0.9, **named}))
    kept = {
        (s.parameters["method"], s.parameters["variant"], s.parameters["seed"]): s
        for s in read(tmp_path / "students.json")
    }
    assert kept["l1-pruning", "30K", 1].accuracy == 0.9
    assert kept["l1-pruning", "30K", 0].accuracy is None
    assert {s.state for s in kept.values()}.isdisjoint({FAILED})
    assert [s.state for s in kept.values()].count(SUCCEEDED) == 1


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("snip", ["--nonzero", "20000"]),
        ("l1-pruning", ["--nonzero", "20000", "--beta", "0"]),
        ("reduced", ["--space", SPACE, "--space-arg", "depth=10", "width=2", "in_channels=1", "image_size=8"]),
    ],
)
def test_the_trial_trains_what_the_method_says(method, more, tmp_path, monkeypatch):
    Architecture.from_choices(SPACE, ["S"] * 3, ARGUMENTS).save(tmp_path / "a.json")
    command = ["--architecture", str(tmp_path / "a.json"), "--out", str(tmp_path / "out"), "--data", "digits"]
    command += ["--data-option", "image_size=8", "--epochs", "1", "--limit-steps", "2", "--teacher-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["distill", *command, "--method", method, "--variant", "v", "--seed", "3", *more])
    distill.run()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["method"], result["variant"], result["seed"]) == (method, "v", 3)
    weights = torch.load(tmp_path / "out" / "weights.pt", weights_only=True)
    network = Architecture.load(tmp_path / "a.json").build()
    network.load_state_dict(weights)
    competing = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in competing)
    assert result["params"] + zeros == 77_562
    assert result["params"] == (77_562 if method == "reduced" else 20_000)
    (teacher,) = [
        json.loads(path.read_text()) for path in tmp_path.glob("*/architecture.json") if path.parent.name != "out"
    ]
    assert teacher["space_args"]["width"] == (2 if method == "reduced" else 1)


@pytest.mark.parametrize(("method", "variant"), [("snip", "30K"), ("reduced", "depth=10 width=2")])
def test_in_an_experiment_a_contestants_parameters_outweigh_the_command(
    method, variant, compared, tmp_path, monkeypatch
):
    wanted = one(compared, method, variant, 1)
    link = SimpleNamespace(parameters=wanted, signed=True, output=tmp_path)
    monkeypatch.setattr("nni_blockswap.training.student.NNILink", lambda: link)
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    typed = ["--out", str(tmp_path), "--space", "search_spaces.resnet:ResNetSpace", "--space-arg", "depth=34"]
    given = distill.parser().parse_args([*typed, "--method", "random", "--variant", "1K", "--seed", "7"])
    found, out, tie = begin(given)
    assert (found.id, out, tie) == (wanted["architecture_id"], tmp_path, link)
    assert (given.method, given.variant, given.seed) == (method, variant, 1)
    assert given.nonzero == (30_000 if method == "snip" else None)

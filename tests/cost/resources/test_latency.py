from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.cost.budget import Budget
from nni_blockswap.cost.resources import RESOURCES, latency, timing
from nni_blockswap.cost.resources.latency import Conditions, Latency, spread
from nni_blockswap.cost.resources.timing import Rounds, interleaved
from nni_blockswap.cost.table import Column
from nni_blockswap.errors import BudgetError
from nni_blockswap.files import read_json, write_json
from nni_blockswap.results.ranking import Ranking
from nni_blockswap.searching import SearchSettings, search
from nni_blockswap.spaces import cost_table
from search_spaces.wide_resnet import WideResNetSpace
from tests.conftest import SMALL, WRN

TABLE = cost_table(WRN, SMALL)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A clock that tells 1 ms a candidate and its place in the table, and twice the sum and 5 ms a whole network.

    Holds how many things each measurement timed.
    """
    monkeypatch.setenv("BLOCKSWAP_CACHE", str(tmp_path / "cache"))
    asked: list[int] = []

    def told(
        runs: Mapping[Any, Callable[[], object]],
        rounds: int,
        device: torch.device,
        prepare: Callable[[Any], object],
        *of_rounds: object,
    ) -> dict[Any, list[float]]:
        asked.append(len(runs))
        for key, run in runs.items():
            prepare(key)
            run()
        return {key: [9.0, truth(key), 1e-9] for key in runs}  # its median

    monkeypatch.setattr(timing, "interleaved", told)
    return asked


def truth(key: Any) -> float:
    """Seconds of a candidate, (site, name, shape), or of a network, its indices."""
    if isinstance(key[0], int):
        parts = [_alone(names[i]) for names, i in zip(TABLE.candidates, key, strict=True)]
        return 5e-3 + 2 * sum(parts)
    return _alone(key[1])


def _alone(name: str) -> float:
    return 1e-3 + 1e-4 * (sum(map(ord, name)) % 17)


def measured(conditions: Conditions | None = None) -> Column:
    return Latency(conditions or Conditions(threads=1)).measure(partial(WideResNetSpace, **SMALL), TABLE)


def test_the_sum_over_sites_predicts_whole_networks(clock: list[int]) -> None:
    column = measured()
    for row in spread(TABLE, 5):
        assert column.total(row) == pytest.approx(1e6 * truth(row), abs=2)  # rounding of four integers
    held = column.source["held_out"]
    assert (held["networks"], held["median_error"]) == (30, 0.0)
    assert held["rank_correlation"] > 0.99  # some of these networks take as long as others
    assert (column.fixed, column.unit) == (5000, "microseconds")


def test_a_prediction_that_is_far_off_is_neither_used_nor_kept(
    clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(runs: Mapping[Any, Callable[[], object]], *_: object) -> dict[Any, list[float]]:
        networks = [key for key in runs if isinstance(key[0], int)]
        return {key: [1.0 if key in networks[latency.FITTED :] else 1e-3] for key in runs}

    with monkeypatch.context() as patch:
        patch.setattr(timing, "interleaved", disturbed)
        with pytest.raises(BudgetError, match="on 30 whole networks it is 100% off"):
            measured()
    assert not list(latency.folder().glob("*"))
    assert measured().source["held_out"]["median_error"] == 0


def test_it_is_measured_once_and_again_under_other_conditions(
    clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured()
    assert measured().source == first.source
    assert len(clock) == 1
    for other in (
        Conditions(threads=2),
        Conditions(threads=1, batch_size=2),
        Conditions(threads=1, precision="bf16"),
        Conditions(threads=1, channels_last=True),
    ):
        before = len(clock)
        assert measured(other).source["where"] != first.source["where"]
        assert len(clock) == before + 1
    monkeypatch.setattr(latency.platform, "node", lambda: "another-machine")
    measured()
    monkeypatch.setattr(latency.torch, "__version__", "9.9")
    measured()
    assert len(clock) == 7
    assert torch.get_num_threads() == 1


def test_a_cache_that_cannot_be_written_to_is_told_before_anything_is_measured(
    clock: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BLOCKSWAP_CACHE", str(tmp_path / "file"))
    with pytest.raises(BudgetError, match=r"latency is kept in '.*file/latency', which cannot be written to .*CACHE"):
        cost_table(WRN, SMALL, ["latency"])
    assert clock == []


def test_a_network_that_does_not_run_keeps_no_hook() -> None:
    space = WideResNetSpace(**SMALL)

    def run() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        latency._parts(space, TABLE, run)
    assert not any(module._forward_pre_hooks for module in space.modules())


def test_the_cache_may_be_named_from_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BLOCKSWAP_CACHE", "~/mine")
    assert latency.folder() == tmp_path / "mine" / "latency"
    monkeypatch.delenv("BLOCKSWAP_CACHE")
    assert latency.folder() == tmp_path / ".cache" / "nni_blockswap" / "latency"


def test_what_is_timed_is_what_enters_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLOCKSWAP_CACHE", str(tmp_path))
    seen, chosen = set(), list[list[torch.nn.Module]]()

    def told(
        runs: Mapping[Any, Callable[[], object]],
        rounds: int,
        device: torch.device,
        prepare: Callable[[Any], object],
        *of_rounds: object,
    ) -> dict[Any, list[float]]:
        for key, run in runs.items():
            if not isinstance(key[0], int):
                (x,) = run.args  # type: ignore[attr-defined]
                seen.add((tuple(x.shape), x.is_contiguous(memory_format=torch.channels_last), torch.is_inference(x)))
                continue
            prepare(key)
            with monkeypatch.context() as patch:  # choosing an architecture is not part of its forward pass
                patch.setattr(WideResNetSpace, "select", None)
                run()
            chosen.append([block.active_branch() for block in run.func.__self__.blocks()])  # type: ignore[attr-defined]
        return {key: [truth(key)] for key in runs}

    monkeypatch.setattr(timing, "interleaved", told)
    measured(Conditions(threads=1, batch_size=3, channels_last=True))
    assert seen == {((3, 16, 8, 8), True, True), ((3, 32, 4, 4), True, True)}
    assert len({tuple(map(id, branches)) for branches in chosen}) == 42  # each with its own branches


class SmoothSpace(WideResNetSpace):
    """The same with another activation behind its last normalisation."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.extra_activation = torch.nn.SiLU()


def test_a_space_of_other_modules_with_the_same_costs_is_measured_anew(clock: list[int]) -> None:
    measured()
    Latency(Conditions(threads=1)).measure(partial(SmoothSpace, **SMALL), TABLE)
    assert len(clock) == 2
    measured()
    assert len(clock) == 2


def test_a_space_too_small_to_check_a_prediction_is_refused(clock: list[int]) -> None:
    few = replace(TABLE, candidates=tuple(names[:2] for names in TABLE.candidates), columns={
        name: replace(column, costs=tuple(block[:2] for block in column.costs))
        for name, column in TABLE.columns.items()
    })  # fmt: skip
    with pytest.raises(BudgetError, match=r"at least 14 architectures, and this one has 8; time them all"):
        Latency(Conditions(threads=1)).measure(partial(WideResNetSpace, **SMALL), few)


def test_in_onnx_runtime_sessions_are_timed_in_place_of_modules(
    clock: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[torch.nn.Module, torch.Size, int]] = []

    def session(network: torch.nn.Module, images: torch.Tensor, threads: int) -> Callable[[], object]:
        assert not torch.is_inference(images)  # which torch.export refuses
        made.append((network, images.shape, threads))
        return lambda: network(images)

    monkeypatch.setattr(latency, "session", session)
    column = measured(Conditions(threads=1, batch_size=2, runtime="onnxruntime"))
    whole = [shape for network, shape, _ in made if isinstance(network, WideResNetSpace)]
    assert whole == [(2, 1, 8, 8)] * 42
    branches = {shape for network, shape, _ in made if not isinstance(network, WideResNetSpace)}
    assert branches == {(2, 16, 8, 8), (2, 32, 4, 4)}
    assert clock == [len(made)]
    assert {threads for _, _, threads in made} == {1}
    assert column.source["where"]["onnxruntime"]
    assert column.source["held_out"]["median_error"] == 0


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"precision": "fp16"}, "with precision float32 or bf16, not fp16"),
        ({"runtime": "onnx"}, "with runtime torch or onnxruntime, not onnx"),
        ({"device": "tpu"}, "with device cpu or cuda, not tpu"),
        ({"runtime": "onnxruntime", "device": "cuda"}, "in float32 on a CPU"),
    ],
)
def test_conditions_that_nothing_is_measured_under(conditions: dict[str, Any], said: str) -> None:
    with pytest.raises(BudgetError, match=said):
        Conditions(**conditions)


def test_networks_to_fit_to_reach_from_the_cheapest_to_the_dearest() -> None:
    params = [TABLE.total("params", row) for row in spread(TABLE, 42)]
    low, high = TABLE.column("params").reach
    assert len(set(spread(TABLE, 42))) == 42
    assert min(params) < low + 0.1 * (high - low)
    assert max(params) > low + 0.9 * (high - low)


def test_the_clock_counts_each_function_in_each_round() -> None:
    calls: list[str] = []
    runs = {name: partial(calls.append, name) for name in "ab"}
    times = interleaved(runs, 4, torch.device("cpu"))
    assert {name: len(found) for name, found in times.items()} == {"a": 4, "b": 4}
    assert all(second > 0 for found in times.values() for second in found)
    turns = [name for name, before in zip(calls, ["", *calls], strict=False) if name != before]
    assert turns == ["a", "b"] * 5  # the warm-up, and four rounds


def test_a_measurement_that_was_killed_makes_the_rounds_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(timing, "SELDOM", 0.0)
    path, runs = tmp_path / "rounds.json", {"a": lambda: None, "b": lambda: None}

    def killed(path: Path, content: Any) -> None:
        write_json(path, content)
        if len(content) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(timing, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        Rounds(path, "latency", 7).made(runs, torch.device("cpu"), lambda name: None)
    before = read_json(path)
    monkeypatch.setattr(timing, "write_json", write_json)
    caplog.clear()
    with caplog.at_level("INFO"):
        times = Rounds(path, "latency", 7).made(runs, torch.device("cpu"), lambda name: None)
    assert {name: len(found) for name, found in times.items()} == {"a": 7, "b": 7}
    assert [[times["a"][number], times["b"][number]] for number in range(3)] == before
    assert [one.message.split(" s left")[0].split(", ")[0] for one in caplog.records] == [
        f"latency: {done} of 7 rounds" for done in (4, 5, 6, 7)
    ]
    path.write_text("[[1.0]]")  # of something else
    assert len(Rounds(path, "latency", 2).made(runs, torch.device("cpu"), lambda name: None)["a"]) == 2


@pytest.mark.parametrize(
    ("text", "microseconds"), [("latency=12ms", 12_000), ("latency=700us", 700), ("latency=1.5s", 1_500_000)]
)
def test_a_budget_in_milliseconds(text: str, microseconds: int) -> None:
    budget = Budget.parse(text)
    assert budget == Budget(latency=microseconds)
    assert Budget.parse(str(budget)) == budget
    assert str(Budget.parse("latency=12ms")) == "latency=12ms-5%"


def test_a_search_within_a_latency(clock: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(RESOURCES._loaded, "latency", Latency(Conditions(threads=1)))
    settings = SearchSettings(
        space=WRN, space_args=SMALL | {"image_size": 16}, data="digits", budgets=["params=60%,latency=13ms"],
        samples=6, batch_size=8, device="cpu",
    )  # fmt: skip
    (ranking,) = search(settings, tmp_path / "out")
    assert all(0 < one.costs["latency"] <= 13_000 for one in ranking.architectures)
    read = Architecture.load(tmp_path / "out/best.json")
    assert read.costs == ranking.best.costs
    loaded = Ranking.load(tmp_path / "out").architectures
    assert [one.costs for one in loaded] == [one.costs for one in ranking.architectures]
    where = read.provenance["measured"]["latency"]["where"]
    assert (where["threads"], where["torch"]) == (1, torch.__version__)


def test_nothing_is_allocated_while_no_latency_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    original = WideResNetSpace.run_counted

    def run(self: BlockSpace, batch_size: int = 1) -> None:
        devices.append(next(self.parameters()).device.type)
        original(self, batch_size)

    monkeypatch.setattr(WideResNetSpace, "run_counted", run)
    WideResNetSpace.cost_table(**SMALL)
    assert set(devices) == {"meta"}

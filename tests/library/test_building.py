"""What a library learns and keeps."""

import csv
import gc
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch

from nni_blockswap.blocks.site import Site
from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.library import school, store
from nni_blockswap.library.bench import Bench
from nni_blockswap.library.building import build
from nni_blockswap.library.fitting import LastConvolution
from nni_blockswap.library.lessons import Lessons
from nni_blockswap.library.library import Library
from nni_blockswap.library.measuring import Error
from nni_blockswap.library.teacher import load_teacher
from nni_blockswap.spaces import cost_table
from nni_blockswap.tasks import make_task
from tests.conftest import WRN
from tests.library.conftest import SPACE_ARGS, copy_of, settings

GENTLE = 5e-4
"""A rate at which six steps gain something where a candidate begins with the original's factors; 0.01 takes more."""


class Killed(BaseException):
    pass


def test_what_equals_the_original_has_error_0_and_keeps_its_weights(library: Library, teacher: Path) -> None:
    original, _ = load_teacher(WRN, SPACE_ARGS, str(teacher))
    for block in original.blocks():
        assert library.errors[block.label]["S"].value == 0
        assert library.errors[block.label]["COPY(1)"].value == 0
        kept = library.weights(block.label, "COPY(1)")
        assert all(torch.equal(value, kept[name]) for name, value in block.branch.state_dict().items())
        assert all(
            error.value > 0 for name, error in library.errors[block.label].items() if name not in ("S", "COPY(1)")
        )


def test_errors_are_those_of_the_weights_on_images_that_were_not_learned_from(library: Library, teacher: Path) -> None:
    """The slow way: one image at a time, in float64, the variance by its definition."""
    original, _ = load_teacher(WRN, SPACE_ARGS, str(teacher))
    task = make_task("digits", image_size=8)
    lessons = Lessons(task, 64, 128, seed=0)
    images = torch.cat([batch[0] for batch in lessons.measured()])
    assert len(images) == 128
    learned = torch.cat([task.minibatch(64, seed=0, index=2 + step, augment=False)[0] for step in range(6)])
    assert not {image.numpy().tobytes() for image in images} & {image.numpy().tobytes() for image in learned}
    block = original.blocks()[1]
    seen: dict[str, torch.Tensor] = {}
    block.branch.register_forward_hook(lambda module, x, y: seen.update(x=x[0].clone(), y=y.clone()))
    with torch.no_grad():
        original(images)
        for name in ("G(4)", "W(1/2)"):
            branch = block.site.build(name)
            branch.load_state_dict(library.weights(block.label, name))
            apart = ((branch.eval()(seen["x"]) - seen["y"]).double() ** 2).mean((1, 2, 3))
            channels = seen["y"].double().transpose(0, 1).flatten(1)
            each = apart / channels.var(dim=1, unbiased=False).mean()
            error = library.errors[block.label][name]
            assert error.value == pytest.approx(each.mean().item(), rel=1e-4)
            assert error.deviation == pytest.approx(each.std().item() / math.sqrt(128), rel=1e-4)


def test_teaching_helps(teacher: Path, tmp_path: Path) -> None:
    short, longer = (build(settings(teacher, steps=steps), tmp_path / str(steps)) for steps in (1, 48))
    assert mean_log(longer) < mean_log(short) - 0.3


def test_beginnings_help(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors before anything is learned: with neither, the originals' factors, the last convolution fitted, both."""

    def begun(name: str) -> float:
        return mean_log(build(settings(teacher, steps=1, lr=1e-12), tmp_path / name))

    both = begun("both")
    with monkeypatch.context() as patches:
        patches.setattr(Site, "inherit", lambda *others: False)
        fitted = begun("fitted")
        patches.setattr(LastConvolution, "solve", lambda fit: None)
        fresh = begun("fresh")
    monkeypatch.setattr(LastConvolution, "solve", lambda fit: None)
    factors = begun("factors")
    assert both < min(fitted, factors) - 0.2
    assert max(fitted, factors) < fresh - 0.2


def mean_log(library: Library) -> float:
    logs = [math.log(error.value) for errors in library.errors.values() for error in errors.values() if error.value]
    return sum(logs) / len(logs)


def test_who_gets_worse_keeps_what_it_began_with(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = build(settings(teacher, steps=1, lr=1e-12), tmp_path / "begun")
    monkeypatch.setattr(school, "SAVE_EVERY", 0.0)
    with pytest.raises(Killed):
        build(settings(teacher, steps=4, lr=9.0), tmp_path / "wild", _killed_at(7))
    wild = build(settings(teacher, steps=4, lr=9.0), tmp_path / "wild")  # what it began with is known to it
    for label, errors in wild.errors.items():
        for name, error in errors.items():
            assert error.value == pytest.approx(begun.errors[label][name].value, rel=1e-4, abs=1e-9)
            if name != "S":
                weights, others = (one.weights(label, name) for one in (wild, begun))
                assert all(torch.allclose(value, others[key], rtol=1e-4) for key, value in weights.items()
                           if key.endswith("weight"))  # fmt: skip


def test_a_library_that_was_killed_is_the_same_in_the_end(
    teacher: Path, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(school, "SAVE_EVERY", 0.0)
    for killed_at in (4, 7, 13):  # steps of blocks: in the first group, at its end, in the second one
        with pytest.raises(Killed):
            build(settings(teacher, blocks_at_once=2), tmp_path, _killed_at(killed_at))
    again = build(settings(teacher, blocks_at_once=2), tmp_path)
    assert again.digests == library.digests  # which learned all blocks at once, and in one go
    assert again.errors == library.errors
    assert not list(tmp_path.glob("*.state.safetensors"))


def test_a_candidate_without_weights_has_its_error_and_learns_nothing(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {**SPACE_ARGS, "extra": ["tests.library.copies:ZERO(1)"]}
    asked = replace(settings(teacher), space_args=arguments)
    monkeypatch.setattr(school, "SAVE_EVERY", 0.0)
    with pytest.raises(Killed):
        build(asked, tmp_path, _killed_at(7))
    library = build(asked, tmp_path)
    original, _ = load_teacher(WRN, arguments, str(teacher))
    block, left = original.blocks()[0], list[torch.Tensor]()
    block.branch.register_forward_hook(lambda module, x, y: left.append(y.clone().double()))
    with torch.no_grad():
        original(
            torch.cat([batch[0] for batch in Lessons(make_task("digits", image_size=8), 64, 128, seed=0).measured()])
        )
    variance = left[0].transpose(0, 1).flatten(1).var(dim=1, unbiased=False).mean()
    assert library.errors["block_00"]["ZERO(1)"].value == pytest.approx(
        (left[0].square().mean() / variance).item(), rel=1e-4
    )
    assert library.weights("block_00", "ZERO(1)") == {}
    assert "ZERO(1)" not in library.errors["block_01"]  # which changes the shape


def test_where_memory_runs_out_fewer_blocks_learn_side_by_side(
    teacher: Path, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, sizes, told = school.School._step, list[int](), list[school.Progress]()

    def scarce(self: school.School, learners: Any, number: int, board: Any) -> None:
        sizes.append(len(learners))
        if len(learners) > 1 and number == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        step(self, learners, number, board)

    monkeypatch.setattr(school.School, "_step", scarce)
    again = build(settings(teacher), tmp_path, told.append)
    assert sizes == [3] * 3 + [1] * 18
    assert again.digests == library.digests
    assert again.errors == library.errors
    assert (told[-1].done, told[-1].total) == (18, 18)


def test_where_one_block_is_too_much_for_memory_it_is_told(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(school.School, "_step", scarce)
    with pytest.raises(RuntimeError, match="out of memory"):
        build(settings(teacher), tmp_path)


def _killed_at(step: int) -> Any:
    def watch(progress: school.Progress) -> None:
        if progress.done >= step:
            raise Killed

    return watch


def test_more_steps_go_on_from_what_was_learned(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(settings(teacher, lr=GENTLE), tmp_path)
    before = {label: store.read(tmp_path / f"{label}.safetensors")[0] for label in first.digests}
    monkeypatch.setattr(school, "SAVE_EVERY", 0.0)
    with pytest.raises(Killed):
        build(settings(teacher, steps=12, lr=GENTLE), tmp_path, _killed_at(26))
    assert Library.load(tmp_path).digests == first.digests  # whole until the longer one is
    longer = build(settings(teacher, steps=12, lr=GENTLE), tmp_path)
    for label, errors in longer.errors.items():
        for name, error in errors.items():
            assert error.value <= first.errors[label][name].value
        after, about = store.read(tmp_path / f"{label}.safetensors")
        assert about["steps"] == 12
        changed = [name for name in after if not torch.equal(after[name], before[label][name])]
        assert changed
        assert not any(name.startswith("COPY") for name in changed)


def test_what_was_begun_for_another_number_of_steps_is_begun_anew(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate falls over the steps that are asked for."""
    monkeypatch.setattr(school, "SAVE_EVERY", 0.0)
    with pytest.raises(Killed):
        build(settings(teacher, steps=20, lr=GENTLE), tmp_path / "killed", _killed_at(30))
    short = build(settings(teacher, lr=GENTLE), tmp_path / "killed")
    assert short.digests == build(settings(teacher, lr=GENTLE), tmp_path / "straight").digests


def test_one_block_is_given_more_steps(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(settings(teacher, lr=GENTLE), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "all")
    longer = settings(teacher, steps=12, lr=GENTLE)
    every = build(longer, tmp_path / "all")
    monkeypatch.setattr(school, "SAVE_EVERY", 0.0)
    alone = replace(longer, blocks=["block_01"])
    with pytest.raises(Killed):
        build(alone, tmp_path / "one", _killed_at(9))
    assert Library.load(tmp_path / "one").digests == first.digests  # whole until it is longer
    told: list[school.Progress] = []
    found = build(alone, tmp_path / "one", told.append)
    assert told[-1].total == 12
    assert found.digests == {**first.digests, "block_01": every.digests["block_01"]}
    assert found.errors == {**first.errors, "block_01": every.errors["block_01"]}
    assert build(settings(teacher, lr=GENTLE), tmp_path / "one").digests == found.digests  # there is nothing to do
    assert build(longer, tmp_path / "one").digests == every.digests  # the others learn on, too
    for folder, blocks, said in (
        ("one", ["block_07"], "'block_07' is no block of the library; its blocks are block_00, block_01, block_02"),
        ("new", ["block_01"], "build the library first"),
    ):
        with pytest.raises(ConfigError, match=said):
            build(replace(longer, blocks=blocks), tmp_path / folder)
        assert not (tmp_path / "new/library.json").exists()


def test_who_gains_nothing_any_more_learns_no_more(teacher: Path, tmp_path: Path) -> None:
    """The same library taught on twice: as it is, and with one more candidate that has settled."""
    first = build(settings(teacher, lr=GENTLE), tmp_path / "held")
    shutil.copytree(tmp_path / "held", tmp_path / "free")
    path = tmp_path / "held" / "block_02.safetensors"
    before, about = store.read(path)
    assert about["settled_after"]["COPY(1)"] == 6
    assert "G(4)" not in about["settled_after"]
    store.write(path, before, {**about, "settled_after": {**about["settled_after"], "G(4)": 6}})
    changed = {}
    for folder in ("held", "free"):
        build(settings(teacher, steps=12, lr=GENTLE), tmp_path / folder)
        after = store.read(tmp_path / folder / "block_02.safetensors")[0]
        changed[folder] = {name.split()[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed["free"] <= set(first.errors["block_02"]) - {"S", *about["settled_after"]}
    assert {"G(4)", "G(8)"} <= changed["free"]
    assert changed["held"] == changed["free"] - {"G(4)"}


def test_who_gained_nothing_by_few_steps_is_taught_by_more(teacher: Path, tmp_path: Path) -> None:
    first = build(settings(teacher, steps=1, lr=GENTLE), tmp_path)
    settled = {label: set(_settled_after(tmp_path, label)) - {"COPY(1)"} for label in first.errors}
    assert all(settled.values())  # one step changes little
    longer = build(settings(teacher, steps=24, lr=GENTLE), tmp_path)
    gains = [first.errors[label][name].value - longer.errors[label][name].value
             for label, names in settled.items() for name in names]  # fmt: skip
    assert sum(gain > 0 for gain in gains) > 0.8 * len(gains)


def test_a_series_is_as_long_as_what_settled_a_candidate_however_often_there_were_shorter_ones(
    teacher: Path, tmp_path: Path
) -> None:
    for steps, series in ((4, 4), (5, 4), (10, 5)):  # of 4 steps, of one, of five
        build(settings(teacher, steps=steps, lr=GENTLE), tmp_path)
        assert all(_settled_after(tmp_path, f"block_{block:02d}")["COPY(1)"] == series for block in range(3))


def test_who_diverged_has_not_settled(teacher: Path, tmp_path: Path) -> None:
    library = build(settings(teacher, steps=2, lr=1e30), tmp_path)
    assert {name for label in library.errors for name in _settled_after(tmp_path, label)} == {"COPY(1)"}


def _settled_after(folder: Path, label: str) -> dict[str, int]:
    found: dict[str, int] = store.read(folder / f"{label}.safetensors")[1]["settled_after"]
    return found


def test_errors_csv(library: Library) -> None:
    with (library.folder / "errors.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    table = cost_table(WRN, SPACE_ARGS)
    assert [(row["block"], row["candidate"]) for row in rows] == [
        (label, name) for label, names in zip(table.labels, table.candidates, strict=True) for name in names
    ]
    narrowed = next(row for row in rows if (row["block"], row["candidate"]) == ("block_02", "W(1/4)"))
    assert int(narrowed["params"]) == sum(w.numel() for w in Site(32, 64, stride=2).build("W(1/4)").parameters())
    assert float(narrowed["error"]) == pytest.approx(library.errors["block_02"]["W(1/4)"].value, rel=1e-5)


def test_what_diverged_keeps_what_it_began_with(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benches: list[Bench] = []
    finish = Bench.finish

    def watched(bench: Bench, errors: Mapping[str, Error]) -> None:
        assert any(math.isnan(error.value) for error in errors.values())
        benches.append(bench)
        finish(bench, errors)

    monkeypatch.setattr(Bench, "finish", watched)
    wild = build(settings(teacher, lr=1e30), tmp_path)
    assert len(benches) == len(wild.errors)
    for bench in benches:
        label = bench.block.label
        assert {name: error for name, error in wild.errors[label].items() if name != "S"} == bench.starts
        for name in bench.starts:
            assert all(bool(value.isfinite().all()) for value in wild.weights(label, name).values())


def test_fewer_steps_than_a_library_has_leave_it_as_it_is(library: Library, teacher: Path, tmp_path: Path) -> None:
    folder = copy_of(library, tmp_path / "library")
    assert build(settings(teacher, steps=2), folder).digests == library.digests
    assert json.loads((folder / "library.json").read_text()) == json.loads(
        (library.folder / "library.json").read_text()
    )


def test_library_json_says_what_it_is(library: Library, teacher: Path) -> None:
    about = json.loads((library.folder / "library.json").read_text())
    state = torch.load(teacher, weights_only=True)
    assert about["teacher_digest"] == store.digest(state)
    assert (about["space"], about["data"]) == (WRN, "digits")
    assert about["steps"] == {"block_00": 6, "block_01": 6, "block_02": 6}


def test_what_is_learned_in_bfloat16_is_kept_and_measured_in_float32(
    library: Library, teacher: Path, tmp_path: Path
) -> None:
    found = build(settings(teacher, precision="bf16"), tmp_path)
    assert found.digests != library.digests
    for label, errors in found.errors.items():
        assert errors["COPY(1)"].value == 0
        weights = store.read(tmp_path / f"{label}.safetensors")[0].values()
        assert {value.dtype for value in weights if value.is_floating_point()} == {torch.float32}
    assert mean_log(found) == pytest.approx(mean_log(library), abs=0.1)
    with pytest.raises(StateError, match="precision was bf16, now float32"):
        build(settings(teacher), tmp_path)


def test_a_bench_that_is_closed_holds_nothing(teacher: Path, tmp_path: Path) -> None:
    """Memory may have run out while its candidates began."""
    block = load_teacher(WRN, SPACE_ARGS, str(teacher))[0].blocks()[0]
    bench = Bench(block, settings(teacher), tmp_path, torch.device("cpu"))
    bench.open()
    kept = [ref(candidate) for candidate in bench.candidates.values()]
    entered = torch.randn(4, block.site.in_channels, 8, 8)
    with torch.no_grad():
        bench.inherit(entered, block.branch(entered))
    bench.gather(entered, entered)
    bench.close()
    gc.collect()
    assert all(one() is None for one in kept)

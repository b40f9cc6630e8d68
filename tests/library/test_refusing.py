"""Which libraries are refused: others, damaged ones, unfinished ones."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nni_blockswap import Architecture
from nni_blockswap.errors import CheckpointError, ConfigError, StateError
from nni_blockswap.files import LOCK, locked
from nni_blockswap.library import building, store
from nni_blockswap.library.assembling import assemble
from nni_blockswap.library.building import build
from nni_blockswap.library.library import Library, read_about, write_about
from nni_blockswap.spaces import NETWORK, cost_table
from nni_blockswap.tasks import TASKS, make_task
from tests.conftest import WRN
from tests.library.conftest import SPACE_ARGS, copy_of, make_teacher, settings


def test_blocks_without_their_librarys_identity_are_not_taken_for_another_one(
    library: Library, teacher: Path, tmp_path: Path
) -> None:
    (copy_of(library, tmp_path / "lib") / "library.json").unlink()
    other = make_teacher(tmp_path / "other.pt", seed=1)
    for source in (teacher, other):
        with pytest.raises(StateError, match=r"blocks of a library that nobody knows, as library\.json is missing"):
            build(settings(source), tmp_path / "lib")


def test_a_network_with_other_weights_each_time_teaches_nobody(tmp_path: Path) -> None:
    """No other process could find the teacher again."""
    drawn = {"space": NETWORK, "space_args": {"model": "tests.library.own:Own", "input_size": [1, 8, 8]}}
    with pytest.raises(CheckpointError, match="comes with other weights each time that it is made"):
        build(_replaced(tmp_path, {**drawn, "teacher": None}), tmp_path / "lib")


def test_two_do_not_build_one_library_at_once(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "PATIENCE", 0.05)
    with locked(tmp_path / LOCK, 1.0, "held"), pytest.raises(StateError, match="another process builds the library"):
        build(settings(teacher), tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"seed": 1}, "seed was 0, now 1"), ({"lr": 0.1}, "lr was 0.01, now 0.1"),
     ({"batch_size": 32}, "batch_size was 64, now 32"), ({"space_args": {**SPACE_ARGS, "width": 2}}, "fit|space_args")],
)  # fmt: skip
def test_another_library_is_not_mixed_in(library: Library, teacher: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises((StateError, CheckpointError), match=said):
        build(_replaced(teacher, changed), library.folder)


def test_a_candidate_that_changes_what_others_learn_from_is_refused(teacher: Path, tmp_path: Path) -> None:
    extra = {"space_args": {**SPACE_ARGS, "extra": ["tests.library.copies:INPLACE(1)"]}}
    with pytest.raises(ConfigError, match="a candidate of block_00 changes in place what enters it"):
        build(_replaced(teacher, extra), tmp_path)


def test_a_programs_options_of_the_data_are_known_again(teacher: Path, tmp_path: Path) -> None:
    """A tuple comes back from library.json as a list; what does not come back is refused."""
    TASKS.register("sized", lambda root, size: make_task("digits", image_size=size[0]))
    sized = _replaced(teacher, {"data": "sized", "data_options": {"size": (8, 8)}, "steps": 1})
    first = build(sized, tmp_path)
    assert build(sized, tmp_path).digest == first.digest
    with pytest.raises(ConfigError, match=r"a library keeps its data_options, which are numbers, texts, .*int64"):
        build(_replaced(teacher, {"data_options": {"image_size": np.int64(8)}}), tmp_path / "other")


def _replaced(teacher: Path, changed: dict[str, Any]) -> Any:
    from dataclasses import replace

    return replace(settings(teacher), **changed)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"lr": math.inf}, "^lr must be finite, which inf is not"),
        ({"lr": math.nan}, "^lr must be finite, which nan is not"),
        ({"blocks": 5}, "^blocks is a list of at least one block, not 5"),
        ({"lr": 0.0}, "^lr must be above 0, not 0.0"),
        ({"lr": "1e-2"}, "^lr must be a number, not '1e-2'"),
        ({"weight_decay": math.inf}, "^weight_decay must be finite, which inf is not"),
        ({"weight_decay": -0.1}, "^weight_decay must not be negative, as -0.1 is"),
    ],
)
def test_a_setting_that_is_none_of_its_kind_is_refused(wrong: dict[str, Any], sentence: str, teacher: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        _replaced(teacher, wrong)


@pytest.mark.parametrize("content", ["{", "null", "[1]", "{}", '{"space": 1}'])
def test_a_library_json_that_is_damaged_is_told(content: str, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "library.json").write_text(content)
    with pytest.raises(StateError, match=r"library\.json' is damaged.*; choose another folder, or delete this one"):
        build(settings(teacher), tmp_path)
    with pytest.raises(StateError, match=r"library\.json' is damaged.*; choose another folder, or delete this one"):
        Library.load(tmp_path)


def test_what_a_library_says_it_is_of_is_not_imported(library: Library, tmp_path: Path) -> None:
    copy_of(library, tmp_path)
    call = {"model": "os:mkdir", "model_args": {"path": str(tmp_path / "made")}}
    write_about(tmp_path, {**library.about, "space": NETWORK, "space_args": call})
    stranger = Library.load(tmp_path)
    with pytest.raises(StateError, match=r"is of .*, not of"):
        stranger.check_space(WRN, SPACE_ARGS)
    assert not (tmp_path / "made").exists()


def test_errors_that_were_changed_on_disk_are_refused(library: Library, tmp_path: Path) -> None:
    path = copy_of(library, tmp_path) / "block_01.safetensors"
    content = path.read_bytes()
    at = content.index(b"[0.") + 3
    path.write_bytes(content[:at] + (b"1" if content[at : at + 1] != b"1" else b"2") + content[at + 1 :])
    with pytest.raises(CheckpointError, match=r"block_01\.safetensors' is damaged"):
        Library.load(tmp_path)


def test_a_library_json_that_was_changed_is_refused(library: Library, teacher: Path, tmp_path: Path) -> None:
    path = copy_of(library, tmp_path) / "library.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    for read in (Library.load, lambda folder: build(settings(teacher), folder)):
        with pytest.raises(StateError, match=r"library\.json' is damaged, or of another version"):
            read(tmp_path)


def test_a_file_of_another_block_or_of_one_that_learns_is_refused(
    library: Library, teacher: Path, tmp_path: Path
) -> None:
    path = copy_of(library, tmp_path) / "block_01.safetensors"
    unfinished = tmp_path / "state.safetensors"
    store.write(unfinished, {}, {"step": 3, "begin": 0, "starts": {}})
    for other in (tmp_path / "block_00.safetensors", unfinished):
        path.write_bytes(other.read_bytes())
        for read in (Library.load, lambda folder: build(settings(teacher), folder)):
            with pytest.raises(CheckpointError, match=r"block_01\.safetensors' is not what block_01 has learned"):
                read(tmp_path)


def test_a_candidate_that_a_library_lacks_is_told(library: Library) -> None:
    """As of a space that offers more than it did when the library was built."""
    more = cost_table(WRN, {**SPACE_ARGS, "extra": ["W(1/8)"]})
    for take in (lambda: library.weights("block_02", "W(1/8)"), lambda: library.values(more)):
        with pytest.raises(StateError, match=r"has no W\(1/8\) for block_0[02], as one of another version may"):
            take()


def test_blocks_of_unequal_steps_are_no_finished_library(library: Library, teacher: Path, tmp_path: Path) -> None:
    """As a kill between two blocks leaves them."""
    longer = build(settings(teacher, steps=8), copy_of(library, tmp_path / "longer"))
    mixed = copy_of(library, tmp_path / "mixed")
    shutil.copy(longer.folder / "block_00.safetensors", mixed)
    with pytest.raises(StateError, match="not finished: block_00 has made 8 steps, and others have not; run"):
        Library.load(mixed)
    shutil.copytree(mixed, tmp_path / "left")
    left = build(replace(settings(teacher, steps=8), blocks=["block_00"]), tmp_path / "left")  # as the sentence says
    assert left.digests == {**library.digests, "block_00": longer.digests["block_00"]}
    assert build(settings(teacher, steps=8), mixed).digests == longer.digests


def test_another_teacher_or_other_images_are_refused(library: Library, tmp_path: Path) -> None:
    other = make_teacher(tmp_path / "other.pt", seed=1)
    with pytest.raises(StateError, match="teacher_digest was"):
        build(settings(other), library.folder)


def test_a_library_that_began_otherwise_is_read_and_not_gone_on_with(
    library: Library, teacher: Path, tmp_path: Path
) -> None:
    for path in library.folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    about = read_about(tmp_path)
    assert about is not None
    del about["starts"]  # as of a library built before candidates had the originals' factors
    write_about(tmp_path, about)
    before = Library.load(tmp_path)
    assert before.errors == library.errors
    assert before.values(cost_table(WRN, SPACE_ARGS)) == library.values(cost_table(WRN, SPACE_ARGS))
    one = Architecture.from_choices(WRN, ["W(1/2)", "G(2)", "B(2)"], SPACE_ARGS)
    students = [assemble(one, torch.load(teacher, weights_only=True), each).state_dict() for each in (before, library)]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())
    with pytest.raises(StateError, match=r"another library \(starts was None, now .* choose another folder"):
        build(settings(teacher, steps=12), tmp_path)


def test_an_unfinished_or_damaged_library_is_refused(library: Library, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no library"):
        Library.load(tmp_path)
    for path in library.folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    block = tmp_path / "block_01.safetensors"
    content = bytearray(block.read_bytes())
    content[-1] ^= 1
    block.write_bytes(content)
    damaged = Library.load(tmp_path)
    assert damaged.errors == library.errors  # which have a check of their own
    with pytest.raises(CheckpointError, match=r"block_01\.safetensors' is damaged"):
        damaged.weights("block_01", "B(2)")
    block.write_bytes(content[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Library.load(tmp_path)
    block.unlink()
    with pytest.raises(StateError, match="block_01 is missing; run its command again"):
        Library.load(tmp_path)


def test_other_images_of_the_same_name_are_refused(
    library: Library, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task("digits", image_size=8)
    draw = task.minibatch

    def inverted(*given: Any, **named: Any) -> Any:
        images, labels = draw(*given, **named)
        return -images, labels

    monkeypatch.setattr(task, "minibatch", inverted)
    monkeypatch.setattr(building, "make_task", lambda *given, **named: task)
    with pytest.raises(StateError, match=r"another library \(data_fingerprint was \w+, now \w+\)"):
        build(settings(teacher), library.folder)


def test_tensors_that_share_their_memory_are_kept_each_for_itself(tmp_path: Path) -> None:
    """As tied weights do, and views of one tensor."""
    whole = torch.arange(6.0)
    tensors = {"one": whole, "other": whole, "part": whole[2:4]}
    store.write(tmp_path / "x.safetensors", tensors, {})
    found, _ = store.read(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_a_candidate_that_keeps_what_is_no_tensor_is_refused(teacher: Path, tmp_path: Path) -> None:
    arguments = {**SPACE_ARGS, "extra": ["tests.library.copies:COUNT(1)"]}
    with pytest.raises(ConfigError, match=r"^COUNT\(1\) keeps '_extra_state' \(get_extra_state\)"):
        build(replace(settings(teacher), space_args=arguments), tmp_path)


def test_what_neither_w_nor_mb_has_changed_is_taught_on(library: Library) -> None:
    """Libraries of the project's own spaces keep their identity."""
    assert library.about["starts"] == "originals' factors, last convolution fitted"

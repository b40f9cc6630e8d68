"""Students put together from a library."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from nni_blockswap import Architecture
from nni_blockswap.blocks import network
from nni_blockswap.errors import CheckpointError, ConfigError, StateError
from nni_blockswap.library import store
from nni_blockswap.library.assembling import assemble, branches, furnish
from nni_blockswap.library.building import build
from nni_blockswap.library.library import Library, write_about
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.library.teacher import load_teacher
from nni_blockswap.spaces import NETWORK, complete_args, cost_table
from nni_blockswap.tasks import make_task
from nni_blockswap.training import checkpoints, distillation_trial, teachers
from nni_blockswap.training.recipe import Recipe
from nni_blockswap.training.starting import check_taught, identity, remembering, start
from tests.conftest import WRN
from tests.library.conftest import SPACE_ARGS, copy_of, make_teacher, settings
from tests.library.own import own
from tests.library.test_networks import RESNET
from trial import distill


def test_all_originals_are_the_teacher_to_the_bit(library: Library, teacher: Path) -> None:
    state = torch.load(teacher, weights_only=True)
    student = assemble(Architecture.from_choices(WRN, ["S"] * 3, SPACE_ARGS), state, library)
    found = student.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    images, _ = make_task("digits", image_size=8).minibatch(16, seed=3)
    assert torch.equal(student(images), load_teacher(WRN, SPACE_ARGS, str(teacher))[0](images))


def test_each_block_gives_what_the_librarys_block_gives(library: Library, teacher: Path) -> None:
    state = torch.load(teacher, weights_only=True)
    table = cost_table(WRN, SPACE_ARGS)
    for choices in (["W(1/2)", "G(N/4)", "BG(2,4)"], ["B(2)", "S", "W(1/4)"]):
        student = assemble(Architecture.from_choices(WRN, choices, SPACE_ARGS), state, library)
        for block, name in zip(student.blocks(), choices, strict=True):
            x = torch.randn(4, block.site.in_channels, 8, 8)
            alone = block.site.build(name).eval()
            alone.load_state_dict(library.weights(block.label, name) if name != "S" else block.branch.state_dict())
            assert torch.equal(block.branch(x), alone(x))
        own = student.state_dict()
        rest = [name for name in own if ".branch." not in name]
        assert all(torch.equal(own[name], state[name]) for name in rest)
    assert len(table.labels) == 3


def test_a_copy_of_every_block_computes_what_the_teacher_does(library: Library, teacher: Path) -> None:
    state = torch.load(teacher, weights_only=True)
    student = assemble(Architecture.from_choices(WRN, ["COPY(1)"] * 3, SPACE_ARGS), state, library)
    images, _ = make_task("digits", image_size=8).minibatch(16, seed=3)
    assert torch.equal(student(images), load_teacher(WRN, SPACE_ARGS, str(teacher))[0](images))


def test_another_teacher_or_space_is_refused(library: Library, tmp_path: Path) -> None:
    other = torch.load(make_teacher(tmp_path / "other.pt", seed=1), weights_only=True)
    one = Architecture.from_choices(WRN, ["S"] * 3, SPACE_ARGS)
    with pytest.raises(StateError, match="learned from another teacher"):
        assemble(one, other, library)
    deeper = Architecture.from_choices(WRN, ["S"] * 6, {**SPACE_ARGS, "depth": 16})
    with pytest.raises(StateError, match=r"is of search_spaces.wide_resnet:WideResNetSpace with .*'depth': 10"):
        assemble(deeper, other, library)


def test_a_student_starts_from_it_and_remembers_it(library: Library, teacher: Path) -> None:
    original, _ = load_teacher(WRN, SPACE_ARGS, str(teacher))
    architecture = Architecture.from_choices(WRN, ["W(1/2)", "S", "G(4)"], SPACE_ARGS)
    student = architecture.build()
    said = start(student, f"library={library.folder}", original, seed=0)
    assert library.digest in said
    expected = assemble(architecture, original.state_dict(), library).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in student.state_dict().items())
    kept = remembering(architecture, f"library={library.folder}").provenance
    assert kept == {"library": str(library.folder), "library_digest": library.digest}
    with pytest.raises(ConfigError, match="library=DIR, if an Architecture"):
        start(student, f"library={library.folder}", None, seed=0)


def test_files_are_looked_at_once_and_weights_read_of_swapped_blocks_alone(
    library: Library, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: dict[str, list[str]] = {"about": [], "read": []}

    def counted(name: str) -> Any:
        known = getattr(store, name)

        def one(path: Path) -> Any:
            reads[name].append(path.stem)
            return known(path)

        return one

    for name in reads:
        monkeypatch.setattr(store, name, counted(name))
    library = replace(library, folder=copy_of(library, tmp_path))
    architecture, how = Architecture.from_choices(WRN, ["W(1/2)", "S", "G(4)"], SPACE_ARGS), f"library={library.folder}"
    assert identity(how) == f"library={library.digest}"
    student = remembering(architecture, how).build()
    original, _ = load_teacher(WRN, SPACE_ARGS, str(teacher))
    check_taught(how, "digits", {}, original)
    start(student, how, original, seed=0)
    assert reads == {"about": ["block_00", "block_01", "block_02"], "read": ["block_00", "block_02"]}


def test_what_has_learned_more_since_it_was_loaded_is_not_taken_for_what_it_was(
    library: Library, teacher: Path, tmp_path: Path
) -> None:
    known = replace(library, folder=copy_of(library, tmp_path))
    tensors, said = store.read(tmp_path / "block_01.safetensors")
    store.write(tmp_path / "block_01.safetensors", {name: value + 1 for name, value in tensors.items()}, said)
    architecture, state = Architecture.from_choices(WRN, ["G(4)"] * 3, SPACE_ARGS), torch.load(teacher)
    with pytest.raises(StateError, match="block_01 has learned more since it was loaded"):
        assemble(architecture, state, known)
    assemble(architecture, state, Library.load(tmp_path))


def test_a_trial_starts_from_it(library: Library, teacher: Path, tmp_path: Path) -> None:
    """With a rate so small that nothing changes but statistics, the weights of the assembled student come out."""
    architecture = Architecture.from_choices(WRN, ["W(1/2)", "G(4)", "W(1/4)"], SPACE_ARGS)
    architecture.save(tmp_path / "best.json")
    command = ["--architecture", f"{tmp_path}/best.json", "--init", f"library={library.folder}"]
    command += ["--teacher", str(teacher), "--out", f"{tmp_path}/student", "--data", "digits"]
    command += ["--data-option", "image_size=8", "--epochs", "1", "--lr", "1e-30", "--limit-steps", "2", "--beta", "0"]
    distillation_trial.run(distill.parser().parse_args(command))
    weights = torch.load(tmp_path / "student" / "weights.pt", weights_only=True)
    expected = assemble(architecture, torch.load(teacher, weights_only=True), library)
    for name, value in expected.named_parameters():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-20)
    kept = Architecture.load(tmp_path / "student" / "architecture.json").provenance
    assert kept["library_digest"] == library.digest
    moved = shutil.copytree(library.folder, tmp_path / "moved")
    again = ["library=" + str(moved) if word.startswith("library=") else word for word in command]
    distillation_trial.run(distill.parser().parse_args(again))  # the same library, and done
    build(settings(teacher, steps=8), moved)
    with pytest.raises(StateError, match="holds a run with another init"):
        distillation_trial.run(distill.parser().parse_args(again))


def test_what_is_not_given_suits_a_student_that_starts_from_a_library() -> None:
    def recipe(*words: str) -> Recipe:
        return distill.check(distill.parser().parse_args(words))

    assert recipe("--init", "teacher") == recipe() == Recipe()
    warm = replace(Recipe(), beta=0.0, kd=1.0, lr=0.03, schedule="cosine_steps")
    library = ["--init", "library=lib", "--teacher", "original"]
    assert recipe(*library) == warm
    assert recipe("--lr", "0.1", *library, "--beta", "5") == replace(warm, lr=0.1, beta=5.0)
    said = " ".join(distill.parser().format_help().split())
    assert "whose defaults are --beta 0.0 --kd 1.0 --lr 0.03 --schedule cosine_steps; default: fresh" in said


def test_a_librarys_student_is_told_that_it_lacks_its_teacher_before_one_is_trained(
    library: Library, tmp_path: Path
) -> None:
    Architecture.from_choices(WRN, ["W(1/2)", "S", "G(4)"], SPACE_ARGS).save(tmp_path / "best.json")
    command = ["--architecture", f"{tmp_path}/best.json", "--init", f"library={library.folder}", "--data", "digits"]
    command += ["--out", str(tmp_path / "student"), "--teacher-dir", str(tmp_path / "teachers")]
    said = r"--init library=.* needs --teacher, the one that the library learned from, which was '.*/weights\.pt'\.$"
    with pytest.raises(ConfigError, match=said):
        distillation_trial.run(distill.parser().parse_args(command))
    with pytest.raises(ConfigError, match="learned from, a checkpoint, or 'original' for weights that a network"):
        distill.check(distill.parser().parse_args(["--init", "library=nowhere"]))
    assert not (tmp_path / "teachers").exists()


def test_a_librarys_student_takes_its_teacher_from_those_that_are_kept(
    library: Library, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = Architecture.from_choices(WRN, ["W(1/2)", "S", "G(4)"], SPACE_ARGS)
    architecture.save(tmp_path / "best.json")
    kept = tmp_path / "teachers" / f"{architecture.teacher().id}-digits-0.pt"
    kept.parent.mkdir()
    shutil.copy(teacher, kept)
    own = copy_of(library, tmp_path / "own")
    write_about(own, {**library.about, "teacher": str(kept)})
    command = ["--architecture", f"{tmp_path}/best.json", "--init", f"library={own}", "--data", "digits"]
    command += ["--data-option", "image_size=8", "--teacher-dir", str(kept.parent), "--out", str(tmp_path / "student")]
    monkeypatch.setattr(teachers, "_train", lambda *_: pytest.fail("one was trained"))
    with pytest.raises(ConfigError, match="needs --teacher"):  # it is one of other settings
        distillation_trial.run(distill.parser().parse_args(command))
    judged: list[Any] = []

    def judge(module: Any, machine: Any) -> float:
        judged.append(module.network.state_dict())
        raise StateError("that is enough.")

    monkeypatch.setattr(teachers, "_fingerprint", lambda *_: "0")
    monkeypatch.setattr(teachers, "evaluate", judge)
    with pytest.raises(StateError, match="enough"):
        distillation_trial.run(distill.parser().parse_args(command))
    assert store.digest(judged[0]) == library.about["teacher_digest"]


def test_a_teacher_may_come_in_a_wrapper(library: Library, teacher: Path) -> None:
    architecture = Architecture.from_choices(WRN, ["W(1/2)", "S", "G(4)"], SPACE_ARGS)
    state = torch.load(teacher, weights_only=True)
    wrapped = {"state_dict": {f"network.{name}": value for name, value in state.items()}, "epoch": 3}
    plain = assemble(architecture, state, library).state_dict()
    found = assemble(architecture, wrapped, library).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in plain.items())


def test_a_users_own_network_is_taught_and_put_together_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space_args = {"model": "tests.library.own:own", "input_size": [1, 8, 8], "extra": ["W(1/2)"]}
    plain = {"steps": 2, "batch_size": 64, "held_out": 64, "device": "cpu", "data_options": {"image_size": 8}}
    made = build(LibrarySettings(space=NETWORK, space_args=space_args, data="digits", **plain), tmp_path)
    state = own().state_dict()
    images, _ = make_task("digits", image_size=8).minibatch(16, seed=3)
    count = len(made.errors)
    all_original = assemble(Architecture.from_choices(NETWORK, ["S"] * count, space_args), state, made)
    assert list(all_original.state_dict()) == list(state)
    assert torch.equal(all_original(images), own().eval()(images))
    narrow = Architecture.from_choices(NETWORK, ["S"] * (count - 1) + ["W(1/2)"], space_args)
    student = assemble(narrow, state, made)
    (branch,) = branches(student, narrow).values()
    kept = made.weights(list(narrow.choices)[-1], "W(1/2)")
    assert all(torch.equal(value, kept[name]) for name, value in branch.state_dict().items())
    assert torch.equal(student.get_parameter("stem.weight"), state["stem.weight"])
    assert student(images).shape == (16, 10)
    later = narrow.build()
    monkeypatch.setattr(network, "make", lambda *_: pytest.fail("the original is made anew"))  # it may live no more
    furnish(later, narrow, state, made)
    assert store.digest(later.state_dict()) == store.digest(student.state_dict())


def test_a_teacher_is_known_by_what_it_is_once_it_is_loaded(teacher: Path, tmp_path: Path) -> None:
    """Not by the names and types of its checkpoint: of torchvision's own, and of half precision."""
    half = {name: one.half() if one.is_floating_point() else one
            for name, one in torch.load(teacher, weights_only=True).items()}  # fmt: skip
    torchvisions = torchvision.models.resnet18(num_classes=3).state_dict()
    resnet = {"depth": 18, "num_classes": 3, "image_size": 32}
    for number, (space, arguments, state) in enumerate([(WRN, SPACE_ARGS, half), (RESNET, resnet, torchvisions)]):
        checkpoints.save(state, tmp_path / f"{number}.pt")
        taught, digest = load_teacher(space, arguments, str(tmp_path / f"{number}.pt"))
        about = {"space": space, "space_args": complete_args(space, arguments), "teacher_digest": digest}
        original = Architecture.from_choices(space, ["S"] * len(taught.blocks()), arguments)
        found = assemble(original, state, Library(tmp_path, about, {}, {})).state_dict()
        assert store.digest(found) == digest


def test_a_teacher_of_another_shape_is_told(library: Library) -> None:
    wide = Architecture.from_choices(WRN, ["S"] * 3, {**SPACE_ARGS, "width": 2}).build().state_dict()
    with pytest.raises(CheckpointError, match="the weights in 'the teacher' do not fit the network"):
        assemble(Architecture.from_choices(WRN, ["S"] * 3, SPACE_ARGS), wide, library)


def test_another_teacher_is_told_before_it_is_judged(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "evaluate", lambda *_: pytest.fail("it was judged"))
    other = make_teacher(tmp_path / "other.pt", seed=1)
    Architecture.from_choices(WRN, ["W(1/2)", "S", "G(4)"], SPACE_ARGS).save(tmp_path / "best.json")
    command = ["--architecture", f"{tmp_path}/best.json", "--init", f"library={library.folder}", "--data", "digits"]
    command += ["--teacher", str(other), "--data-option", "image_size=8", "--out", f"{tmp_path}/student"]
    with pytest.raises(StateError, match="learned from another teacher"):
        distillation_trial.run(distill.parser().parse_args(command))


def test_a_student_of_other_data_does_not_start_from_it(library: Library, teacher: Path, tmp_path: Path) -> None:
    original, _ = load_teacher(WRN, SPACE_ARGS, str(teacher))
    how = f"library={library.folder}"
    with pytest.raises(StateError, match="learned from digits, not from cifar10; build one"):
        check_taught(how, "cifar10", {}, original)
    check_taught(how, "digits", {"image_size": 8, "held_out": 90}, original)
    check_taught("teacher", "cifar10", {}, original)
    of_a_program = copy_of(library, tmp_path / "own")
    write_about(of_a_program, {**library.about, "data": "loader"})
    check_taught(f"library={of_a_program}", "cifar10", {}, original)

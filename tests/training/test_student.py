"""Which student a trial under NNI trains, where NNI records it with the parameters of another."""

from pathlib import Path

import nni
import nni.trial
import pytest

from nni_blockswap import Architecture
from nni_blockswap.files import write_json
from nni_blockswap.results.trial import GIVEN
from nni_blockswap.training.student import announce, begin
from tests.conftest import SMALL, WRN
from trial import distill

FIRST = Architecture.from_choices(WRN, ["G(2)", "S", "S"], SMALL)
OTHER = Architecture.from_choices(WRN, ["S", "S", "B(2)"], SMALL)


def begun(handed_out: Architecture, out: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    asked = []
    monkeypatch.setattr(nni, "get_next_parameter", lambda: asked.append(1) or handed_out.to_parameters(1))
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(out))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    found, _, _ = begin(distill.parser().parse_args([]))
    assert asked == [1]
    return found.id


def test_a_trial_trains_what_nni_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begun(FIRST, tmp_path / "t1", monkeypatch) == FIRST.id


def test_a_resumed_trial_goes_on_with_the_student_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert begun(FIRST, tmp_path / "t1", monkeypatch) == FIRST.id
    assert begun(OTHER, tmp_path / "t1", monkeypatch) == FIRST.id
    (tmp_path / "t1" / GIVEN).write_text("damaged")
    assert begun(OTHER, tmp_path / "t1", monkeypatch) == OTHER.id


def test_in_a_comparison_the_seed_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"method": "blockswap", "variant": "30%", "seed": 1}
    write_json(tmp_path / GIVEN, {**FIRST.to_parameters(1), **named})
    monkeypatch.setattr(nni, "get_next_parameter", lambda: {**OTHER.to_parameters(1), **named, "seed": 2})
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path))
    given = distill.parser().parse_args([])
    begin(given)
    assert (given.method, given.variant, given.seed) == ("blockswap", "30%", 1)


def test_in_a_comparison_all_processes_of_a_trial_train_by_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one alone talks to NNI; DDP would average gradients, and each process step at a rate of its own."""
    named = {"method": "other", "variant": "", "seed": 1, "recipe": {"lr": 0.05}}
    monkeypatch.setattr(nni, "get_next_parameter", lambda: {**FIRST.to_parameters(1), **named})
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path))
    architecture, out, _ = begin(distill.parser().parse_args([]))
    announce("student", architecture, out)
    monkeypatch.setenv("LOCAL_RANK", "1")
    given = distill.parser().parse_args([])
    again, _, link = begin(given)
    assert (again.id, link) == (FIRST.id, None)
    assert (distill.check(given).lr, given.seed, given.method) == (0.05, 1, "other")

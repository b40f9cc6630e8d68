"""A network of another kind as a trial: CondenseNet, trained with learned groups and left as the deployed network."""

import json
import sys
from pathlib import Path

import pytest
import torch

from nni_blockswap.architecture import Architecture
from nni_blockswap.studies.published import published, read_rows
from nni_blockswap.studies.trials import read_trials
from nni_blockswap.tasks import make_task
from nni_blockswap.training.condensation import learned
from nni_blockswap.training.program import main
from trial import distill

SPACE = "search_spaces.condensenet:CondenseNetSpace"
TINY = {"stages": [2, 1], "growth": [4, 8], "in_channels": 1, "image_size": 8}
LEARNED = Architecture.from_choices(SPACE, [], TINY)
DEPLOYED = Architecture.from_choices(SPACE, [], {**TINY, "deployed": True})
RECIPE = {"epochs": 4, "batch_size": 64, "weight_decay": 1e-4, "beta": 0}


def train(monkeypatch: pytest.MonkeyPatch, out: Path, recipe: dict, *more: str) -> dict:
    LEARNED.save(out / "given.json")
    given = ["--architecture", str(out / "given.json"), "--out", str(out), "--method", "condensenet", *more]
    given += ["--data", "digits", "--data-option", "image_size=8", "--epochs", "200", "--teacher-dir", str(out / "t")]
    monkeypatch.setattr(sys, "argv", ["trial.distill", *given, "--recipe", json.dumps(recipe)])
    main("trial.distill", distill.run)
    return json.loads((out / "result.json").read_text())


def test_what_is_left_is_the_deployed_network_as_accurate_as_the_trained_one(monkeypatch, tmp_path) -> None:
    result = train(monkeypatch, tmp_path, RECIPE)
    assert (result["method"], result["epochs"], result["params"]) == ("condensenet", 4, DEPLOYED.params)
    assert (result["macs"], result["architecture_id"]) == (DEPLOYED.macs, LEARNED.id)  # as NNI knows the trial
    assert Architecture.load(tmp_path / "architecture.json") == DEPLOYED
    network = Architecture.load(tmp_path / "architecture.json").build().eval()
    network.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    task = make_task("digits", None, image_size=8)
    right = total = 0
    for batch in task.val_loader(64):
        images, labels = task.prepare(batch, train=False)
        right += int((network(images).argmax(1) == labels).sum())
        total += len(labels)
    assert right / total == pytest.approx(result["accuracy"], abs=1e-6)
    assert result["accuracy"] > 0.3  # of ten classes


def test_the_penalty_and_three_condensations_took_place(monkeypatch, tmp_path) -> None:
    train(monkeypatch, tmp_path, RECIPE)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    masks = {name: mask for name, mask in state.items() if name.endswith(".mask")}
    assert len(masks) == len(learned(LEARNED.build())) == 3
    for mask in masks.values():
        assert mask.sum(1).tolist() == [mask.shape[1] / 4] * mask.shape[0]


def test_a_report_takes_it_beside_trials_with_another_number_of_epochs(monkeypatch, tmp_path) -> None:
    train(monkeypatch, tmp_path / "a", RECIPE)
    (tmp_path / "b").mkdir()
    for name in ("result.json", "settings.json"):
        content = json.loads((tmp_path / "a" / name).read_text())
        content |= {"method": "blockswap", "variant": "1K", "epochs": 200}
        content.pop("own_kind")
        (tmp_path / "b" / name).write_text(json.dumps(content))
    LEARNED.save(tmp_path / "b" / "architecture.json")
    blockswap, other = sorted(read_trials([tmp_path]), key=lambda one: one.method)
    assert (other.own_kind, other.params) == (True, DEPLOYED.params)
    assert not blockswap.own_kind
    (row,) = [row for row in read_rows([tmp_path], published("2")) if row.method == "condensenet"]
    assert row.params == DEPLOYED.params


def test_it_is_born_again_of_a_teacher_of_its_own_kind(monkeypatch, tmp_path) -> None:
    other = ["--space", "search_spaces.wide_resnet:WideResNetSpace", "--space-arg", "depth=10", "width=1"]
    result = train(monkeypatch, tmp_path, {**RECIPE, "kd": 1, "temperature": 1}, *other)
    (kept,) = (tmp_path / "t").glob("*/architecture.json")
    assert Architecture.load(kept) == LEARNED
    (weights,) = (tmp_path / "t").glob("*.pt")
    masks = {name: mask for name, mask in torch.load(weights, weights_only=True).items() if name.endswith(".mask")}
    assert {int(mask[0].sum()) * 4 for mask in masks.values()} == {mask.shape[1] for mask in masks.values()}
    assert 0.3 < result["teacher_accuracy"] <= 1
    assert result["own_kind"]


def test_a_recipe_has_no_other_fields(monkeypatch, tmp_path) -> None:
    with pytest.raises(SystemExit, match="a recipe has no 'speed'"):
        train(monkeypatch, tmp_path, {"speed": 3})

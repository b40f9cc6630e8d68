"""Detection trials: COCO's metrics, the recipe, choices that carry over, and the shipped experiment on images."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.nni_format import read_candidates, to_nni
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import ConfigError, StateError, TrainingError
from nni_blockswap.experiment.classargs import read_settings
from nni_blockswap.searching import search
from nni_blockswap.spaces import cost_table
from nni_blockswap.studies.comparison import Comparison
from nni_blockswap.studies.published import lay_beside
from nni_blockswap.tasks.coco import Coco
from nni_blockswap.training import detection_trial
from nni_blockswap.training.average_precision import average_precision, results_of
from nni_blockswap.training.detection import DetectionTraining
from nni_blockswap.training.machine import Machine
from nni_blockswap.training.recipe import DetectionRecipe
from trial.detect import SPACES, run

detector = partial(detection_trial.detector, **SPACES)

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "coco_mask_rcnn.yml"
TINY = {"depth": 18, "min_size": 64, "max_size": 96, "box_batch_size_per_image": 8}
TINY_OPTIONS = shlex.split(
    "--epochs 2 --batch-size 2 --limit-steps 2 --devices 1 --workers 0 "
    "--space-arg min_size=64 max_size=96 box_batch_size_per_image=8"
)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A saved ResNet-18 of the cheapest kind."""
    Architecture.from_choices("search_spaces.resnet:ResNetSpace", ["G(N)"] * 8, {"depth": 18}).save(tmp_path / "a.json")
    return tmp_path / "a.json"


# --- COCO's metrics ---------------------------------------------------------------------------------------------------


def found(
    boxes: list[list[float]], masks: torch.Tensor, scores: list[float], label: int = 7
) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.full((len(scores),), label),
        "masks": masks[:, None].float(),
    }


def rectangle(x: int, y: int, width: int, height: int) -> torch.Tensor:
    mask = torch.zeros(1, 100, 100)
    mask[:, y : y + height, x : x + width] = 1
    return mask


@pytest.fixture
def truth(tmp_path: Path) -> Any:
    """Two images of 100 x 100 with a square of 50 x 50 each."""
    from pycocotools.coco import COCO

    square = [[10.0, 10.0, 60.0, 10.0, 60.0, 60.0, 10.0, 60.0]]
    annotations = [
        {"id": n, "image_id": n, "category_id": 7, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0,
         "segmentation": square} for n in (1, 2)
    ]  # fmt: skip
    images = [{"id": n, "height": 100, "width": 100} for n in (1, 2)]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 7}]}))
    return COCO(str(path))


def test_average_precision_by_hand(truth: Any) -> None:
    """IoU 1 on one image; on the other box 0.52 and mask 0.82, so that each counts up to its own threshold."""
    perfect = found([[10, 10, 60, 60]], rectangle(10, 10, 50, 50), [0.9])
    partial = found([[10, 10, 60, 36]], rectangle(10, 10, 50, 41), [0.8])
    figures = average_precision(truth, {1: results_of(1, perfect), 2: results_of(2, partial)})
    half = 51 / 101  # precision is 1 up to a recall of 0.5: 51 of the 101 points of interpolation
    assert figures["box/AP50"] == pytest.approx(1)
    assert figures["box/AP75"] == pytest.approx(half)
    assert figures["box/AP"] == pytest.approx((1 + 9 * half) / 10)  # 0.50 is reached, 0.55 to 0.95 are not
    assert figures["mask/AP75"] == pytest.approx(1)
    assert figures["mask/AP"] == pytest.approx((7 + 3 * half) / 10)  # 0.50 to 0.80
    assert (figures["box/APs"], figures["box/APl"]) == (-1, -1)
    assert figures["mask/APm"] == figures["mask/AP"]


def test_images_not_looked_at_do_not_count(truth: Any) -> None:
    perfect = found([[10, 10, 60, 60]], rectangle(10, 10, 50, 50), [0.9])
    assert average_precision(truth, {1: results_of(1, perfect)})["mask/AP"] == pytest.approx(1)


def test_no_detection_at_all(truth: Any) -> None:
    nothing = found([], torch.zeros(0, 100, 100), [])
    figures = average_precision(truth, {1: results_of(1, nothing), 2: results_of(2, nothing)})
    assert figures["box/AP"] == figures["mask/AP"] == 0


def test_a_small_mask_in_a_large_box_is_a_small_object(truth: Any) -> None:
    """An unmatched detection counts against the sizes it has: by its mask for masks, by its box for boxes."""
    perfect = found([[10, 10, 60, 60]], rectangle(10, 10, 50, 50), [0.5])
    wrong = found([[0, 0, 50, 99]], rectangle(70, 70, 10, 10), [0.9])
    both = {name: torch.cat([perfect[name], wrong[name]]) for name in perfect}
    figures = average_precision(truth, {1: results_of(1, both)})
    assert figures["mask/APm"] == pytest.approx(1)
    assert figures["box/APm"] == pytest.approx(0.5)


def test_the_truth_itself_is_perfect(coco_folder: Path) -> None:
    task = Coco(str(coco_folder))
    results = {}
    for _, targets in task.val_loader(8):
        for target in targets:
            kept = target["iscrowd"] == 0
            exact = {name: target[name][kept] for name in ("boxes", "labels")}
            exact |= {"masks": target["masks"][kept][:, None].float(), "scores": torch.ones(int(kept.sum()))}
            results[int(target["image_id"])] = results_of(int(target["image_id"]), exact)
    figures = average_precision(task.held_out.index, results)
    assert figures["box/AP"] > 0.999
    assert figures["mask/AP"] > 0.999


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_falls_as_in_torchvisions_reference() -> None:
    recipe = DetectionRecipe()
    assert recipe.learning_rate(0, 0) == pytest.approx(0.02 / 1000)
    assert recipe.learning_rate(0, 499) == pytest.approx(0.01)
    by_epoch = [recipe.learning_rate(epoch, 7000 * (epoch + 1)) for epoch in range(26)]
    assert by_epoch == pytest.approx([0.02] * 16 + [0.002] * 6 + [0.0002] * 4)


# --- which detector ---------------------------------------------------------------------------------------------------


def test_choices_of_a_classifier_carry_over_with_their_score() -> None:
    extra = ["BG(4,M/8)"]
    choices = ["BG(4,M/8)", *["B(2)"] * 7]
    given = Architecture.from_choices("search_spaces.resnet:ResNetSpace", choices, {"depth": 18, "extra": extra})
    made = detector(given.scored(1.5, {"proxy": "fisher"}), {"min_size": 64})
    assert made.space == "search_spaces.mask_rcnn:MaskRCNNSpace"
    assert made.choices == given.choices
    assert (made.space_args["depth"], made.space_args["extra"], made.space_args["min_size"]) == (18, extra, 64)
    assert (made.score, made.provenance) == (1.5, {"proxy": "fisher"})
    assert detector(made, {}) == made


def test_other_spaces_make_no_detector() -> None:
    given = Architecture.from_choices("search_spaces.wide_resnet:WideResNetSpace", ["S"] * 3, {"depth": 10})
    with pytest.raises(ConfigError, match="not search_spaces"):
        detector(given, {})


def test_a_narrowed_classifier_makes_no_detector() -> None:
    given = Architecture.from_choices("search_spaces.resnet:ResNetSpace", ["S"] * 8, {"depth": 18, "late_width": 0.5})
    with pytest.raises(ConfigError, match=r"this architecture has late_width=0\.5"):
        detector(given, {})


# --- the shipped experiment -------------------------------------------------------------------------------------------


def experiment() -> dict[str, Any]:
    return yaml.safe_load(EXPERIMENT.read_text())


def test_experiment_lists_all_candidates_of_both_spaces() -> None:
    listed = read_candidates(EXPERIMENT.parent / experiment()["searchSpaceFile"])
    for space in ("search_spaces.mask_rcnn:MaskRCNNSpace", "search_spaces.resnet:ResNetSpace"):
        table = cost_table(space)
        assert listed == {label: entry["_value"] for label, entry in to_nni(table).items()}


def test_experiment_searches(coco_folder: Path, tmp_path: Path) -> None:
    """The tuner's arguments as shipped, but for small images, few of them and few samples."""
    small = {"data_root": str(coco_folder), "samples": 2, "batch_size": 2}
    space_args = {name: value for name, value in TINY.items() if name != "depth"}
    arguments = {**experiment()["tuner"]["classArgs"], **small, "space_args": space_args}
    settings, students = read_settings(arguments, {}, ROOT)
    ranking = search(settings, tmp_path)[0]
    assert students == experiment()["maxTrialNumber"]
    best = ranking.top(2)
    assert len(best) == 2
    assert best[0].score > best[1].score > 0
    assert all(abs(one.params - 22_800_000) <= 0.003 * 22_800_000 for one in best)


def command(coco_folder: Path, classifier: Path, out: Path, *more: str) -> list[str]:
    python, *arguments = shlex.split(experiment()["trialCommand"])
    assert (python, *arguments[:2]) == ("python", "-m", "trial.detect")
    given = ["--data-root", str(coco_folder), "--architecture", str(classifier), "--out", str(out)]
    return [*arguments[2:], *given, *TINY_OPTIONS, *more]


def test_experiments_trial_trains_reports_and_is_complete(
    coco_folder: Path,
    classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["trial.detect", *command(coco_folder, classifier, out)])
    run()
    assert "epoch 2/2" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["epochs"] == 2
    sizes = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    assert {f"{kind}_{size}" for kind in ("box", "mask") for size in sizes} < set(result)
    trained = Architecture.load(out / "architecture.json")
    assert result["architecture_id"] == trained.id
    trained.build().load_state_dict(torch.load(out / "weights.pt", weights_only=True), strict=True)
    run()  # complete already: nothing to train, the same result
    assert "epoch 2/2" not in capsys.readouterr().out
    assert json.loads((out / "result.json").read_text())["box_AP"] == result["box_AP"]
    monkeypatch.setattr(sys, "argv", ["trial.detect", *command(coco_folder, classifier, out, "--limit-steps", "3")])
    with pytest.raises(StateError, match="another limit_steps;"):
        run()


def test_a_trial_of_the_comparison_stands_in_table_4(
    coco_folder: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = yaml.safe_load((ROOT / "experiments" / "coco_comparison.yml").read_text())
    assert compared["trialCommand"] == experiment()["trialCommand"]
    arguments = compared["tuner"]["classArgs"]
    size = Comparison.read(arguments["comparison"]).size(blocks=16)
    assert size == arguments["students"] == compared["maxTrialNumber"]
    named = ["--method", "single", "--variant", "G(N)", "--seed", "3", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["trial.detect", *command(coco_folder, classifier, tmp_path / "a", *named)])
    run()
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert (result["method"], result["variant"], result["seed"]) == ("single", "G(N)", 3)
    text = lay_beside("4", [tmp_path / "a"], tmp_path / "out")
    (line,) = [line for line in text.splitlines() if line.startswith("| single")]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[8:11] == [f"{100 * result['box_AP']:.2f}", "22.30", f"{100 * result['box_AP'] - 22.3:+.2f}"]


def test_boxes_are_decoded_in_float32_unless_told_otherwise(
    coco_folder: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions = []

    def fit(module: object, out: object, machine: Machine, *more: object, **named: object) -> None:
        precisions.append(machine.precision)
        raise TrainingError("seen enough")

    monkeypatch.setattr(detection_trial, "fit", fit)
    for more in ([], ["--precision", "bf16-mixed"]):
        monkeypatch.setattr(sys, "argv", ["trial.detect", *command(coco_folder, classifier, tmp_path / "out", *more)])
        with pytest.raises(TrainingError, match="seen enough"):
            run()
    assert precisions == ["32-true", "bf16-mixed"]


def test_a_clipped_step_is_as_long_as_rate_times_clip(
    coco_folder: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    more = shlex.split("--epochs 1 --limit-steps 1 --warmup 0 --momentum 0 --weight-decay 0 --lr 0.1 --clip 0.1")
    monkeypatch.setattr(sys, "argv", ["trial.detect", *command(coco_folder, classifier, out, *more)])
    run()
    with seeded(0):  # as --seed says
        network = Architecture.load(out / "architecture.json").build()
    trained = torch.load(out / "weights.pt", weights_only=True)
    moved = [(trained[name] - weight).detach().flatten() for name, weight in network.named_parameters()]
    assert torch.cat(moved).norm().item() == pytest.approx(0.1 * 0.1, rel=1e-2)


def test_the_seed_decides_over_weights_and_order(
    coco_folder: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, orders = [], []

    def stop(module: DetectionTraining, batch: Any, batch_idx: int) -> None:
        weights.append(module.network.get_parameter("backbone.body.conv1.weight").detach().clone())
        orders.append([int(target["image_id"]) for target in batch[1]])
        raise TrainingError("seen enough")

    monkeypatch.setattr(DetectionTraining, "training_step", stop)
    for number, seed in enumerate("001"):
        more = ["--batch-size", "8", "--seed", seed]
        arguments = command(coco_folder, classifier, tmp_path / str(number), *more)
        monkeypatch.setattr(sys, "argv", ["trial.detect", *arguments])
        with pytest.raises(TrainingError, match="seen enough"):
            run()
    assert torch.equal(weights[0], weights[1])
    assert orders[0] == orders[1]
    assert not torch.equal(weights[0], weights[2])
    assert orders[0] != orders[2]


def test_a_diverged_run_says_so(
    coco_folder: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = command(coco_folder, classifier, tmp_path / "out", "--lr", "1e6", "--warmup", "0", "--limit-steps", "4")
    monkeypatch.setattr(sys, "argv", ["trial.detect", *wild])
    with pytest.raises(TrainingError, match=r"no longer finite in epoch 1 \(lr 1e\+06\): lower --lr"):
        run()
    assert not (tmp_path / "out" / "last.ckpt").exists()


KILLED_IN_THE_SECOND_EPOCH = """
import os, signal
from nni_blockswap.training.detection import DetectionTraining
from nni_blockswap.training.program import main
from trial import detect
step = DetectionTraining.training_step
def fatal(self, batch, batch_idx):
    if self.current_epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
DetectionTraining.training_step = fatal
main("trial.detect", detect.run)
"""


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_last_epoch(coco_folder: Path, classifier: Path, tmp_path: Path) -> None:
    """Slow: two processes, one of them killed in its second epoch."""
    out = tmp_path / "out"
    arguments = command(coco_folder, classifier, out)
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_THE_SECOND_EPOCH, *arguments], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "result.json").exists()
    again = [sys.executable, "-m", "trial.detect", *arguments]
    finished = subprocess.run(again, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "going on after epoch 1" in finished.stdout
    assert json.loads((out / "result.json").read_text())["epochs"] == 2


def few_images(root: Path, out: Path) -> Path:
    """COCO's layout with three images of large, sparse objects, the same ones for training and validation."""
    index = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    found: dict[int, list[dict[str, Any]]] = {}
    for annotation in index["annotations"]:
        found.setdefault(annotation["image_id"], []).append(annotation)

    def is_easy(image: dict[str, Any]) -> bool:
        own = found.get(image["id"], [])
        tenth = 0.1 * image["width"] * image["height"]
        return 1 <= len(own) <= 2 and all(not one["iscrowd"] and one["area"] > tenth for one in own)

    images = [image for image in index["images"] if is_easy(image)][:3]
    few = {**index, "images": images, "annotations": [one for image in images for one in found[image["id"]]]}
    (out / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (out / part).mkdir()
        (out / "annotations" / f"instances_{part}.json").write_text(json.dumps(few))
        for image in images:
            shutil.copy(root / "train2017" / image["file_name"], out / part)
    return out


@pytest.mark.slow
def test_a_detector_finds_again_what_it_was_trained_on(
    coco_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow: forty steps of training, each with an evaluation; a few minutes."""
    architecture = Architecture.from_choices("search_spaces.resnet:ResNetSpace", ["S", "G(4)"] * 4, {"depth": 18})
    architecture.save(tmp_path / "a.json")
    out = tmp_path / "out"
    options = "--epochs 40 --batch-size 3 --lr 0.005 --warmup 50 --milestones 30 --devices 1 --workers 0"
    small = "--space-arg min_size=160 max_size=224 box_batch_size_per_image=64"
    folders = ["--data-root", str(few_images(coco_folder, tmp_path / "coco")), "--out", str(out)]
    given = ["--architecture", str(tmp_path / "a.json"), *folders, *options.split(), *small.split()]
    monkeypatch.setattr(sys, "argv", ["trial.detect", *given])
    run()
    result = json.loads((out / "result.json").read_text())
    # Chance finds none of 91 classes at these places; a detector that learns at all learns three images.
    assert result["box_AP50"] > 0.3
    assert result["mask_AP50"] > 0.3

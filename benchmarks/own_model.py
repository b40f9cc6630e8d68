"""A network of one's own from end to end: torchvision's ResNet-18 on CIFAR-10 images, compressed, taught, exported.

- teacher: ResNet-18 with the stem of small images (3x3, no pooling), trained on ``--images`` training images;
- student: the best of ``--samples`` by Fisher potential at ``--budget`` of its parameters;
- it learns from the teacher, once from fresh weights and once from the teacher's where names and shapes are the same;
- each is exported in all formats, and loaded and judged in a process that cannot import this package.

Whatever was made stays in ``--out``: the same command goes on where it was stopped.

    python benchmarks/own_model.py --data-root data/cifar10 --out own_model_study
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils.data import Subset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import nni_blockswap as bs  # noqa: E402
from benchmarks.machine import processor  # noqa: E402
from nni_blockswap.files import read_json, write_json, write_text  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "own_model.md"
EXAMPLE = torch.zeros(1, 3, 32, 32)
STARTS = ("fresh", "teacher")
LABELS = {"teacher": "teacher", "student-fresh": "student from fresh weights",
          "student-teacher": "student from the teacher's weights where it has them"}  # fmt: skip
ENDINGS = (".pt2", ".onnx", ".safetensors")
NORMALISED = (ToTensor(), Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))

ELSEWHERE = """
import importlib.util, json, sys, torch
sys.modules["nni_blockswap"] = None  # whoever imports it fails
path, held_out = sys.argv[1:]
images, labels, expected = torch.load(held_out, weights_only=True).values()
if path.endswith(".pt2"):
    outputs = torch.export.load(path).module()(images)
elif path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    outputs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
else:
    specification = importlib.util.spec_from_file_location("student", path.replace(".safetensors", ".py"))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    outputs = module.load()(images)
accuracy = (outputs.argmax(1) == labels).float().mean().item()
print(json.dumps({"accuracy": accuracy, "difference": (outputs - expected).abs().max().item()}))
"""


def main() -> None:
    """Teacher, search, two students, three files of each; then the table."""
    given = parser().parse_args()
    out = Path(given.out)
    train, held_out = images(given.data_root, True, given.images), images(given.data_root, False, given.held_out)
    taught: dict[str, Any] = {"train": train, "val": held_out, "batch_size": 64, "precision": given.precision,
                              "weight_decay": 5e-4, "nesterov": True, "lr": 0.05, "warmup": 1.0}  # fmt: skip
    torch.manual_seed(0)
    teacher = resnet18()
    found = {"teacher": bs.distill(teacher, epochs=given.teacher_epochs, out=out / "teacher", beta=0, **taught)}
    space = bs.swap_blocks(teacher, EXAMPLE)
    ranking, seconds = searched(space, train, given, out)
    for start in STARTS:
        student = ranking.best.build()
        learnt = {"epochs": given.epochs, "init": start, "beta": given.beta, "kd": 1.0, **taught}
        found[f"student-{start}"] = bs.distill(student, teacher, out=out / f"student-{start}", **learnt)
        for ending in ENDINGS:
            elsewhere(student, held_out, out / f"student-{start}" / f"student{ending}")
    text = page(given, out, space, ranking, seconds, found)
    write_text(out / "own_model.md", text)
    write_text(RESULTS, text)
    print(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    command.add_argument("--data-root", required=True, help="CIFAR-10: image folders train and test, or torchvision's")
    command.add_argument("--out", required=True)
    command.add_argument("--images", type=int, default=10_000, help="to learn from")
    command.add_argument("--held-out", type=int, default=2_000, help="to be judged on")
    command.add_argument("--budget", default="30%")
    command.add_argument("--samples", type=int, default=200)
    command.add_argument("--teacher-epochs", type=int, default=8)
    command.add_argument("--epochs", type=int, default=6)
    command.add_argument("--beta", type=float, default=100.0, help="weight of attention transfer")
    command.add_argument("--precision", default="bf16-mixed", help="of the training")
    return command


def resnet18() -> nn.Module:
    """torchvision's, for images of 32x32: without the seven by seven stem of stride 2 and the pooling after it."""
    network: nn.Module = torchvision.models.resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def images(root: str, train: bool, count: int) -> Subset[Any]:
    """``count`` images, evenly over the set; in training cropped and flipped."""
    changes = (RandomCrop(32, padding=4), RandomHorizontalFlip()) if train else ()
    part, change = Path(root) / ("train" if train else "test"), Compose([*changes, *NORMALISED])
    if part.is_dir():
        data: Any = torchvision.datasets.ImageFolder(str(part), change)
    else:
        data = torchvision.datasets.CIFAR10(root, train, change)
    return Subset(data, [index * len(data) // count for index in range(count)])


def searched(space: Any, train: Any, given: argparse.Namespace, out: Path) -> tuple[Any, float]:
    """The ranking, and the seconds that it took when it was first found."""
    kept, began = out / "search_seconds.json", time.monotonic()
    ranking = bs.search(space, train, budget=given.budget, tolerance=0.05, samples=given.samples, out=out / "search")
    if not kept.exists():
        write_json(kept, time.monotonic() - began)
    return ranking, float(read_json(kept))


def elsewhere(student: nn.Module, held_out: Any, path: Path) -> None:
    """Export ``student`` to ``path``, and keep beside it what a process without this package makes of the file."""
    kept = path.with_name(f"{path.name}.json")
    if kept.exists():
        return
    bs.export(student, path, EXAMPLE)
    pairs = [held_out[index] for index in range(len(held_out))]
    shown, labels = torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])
    with torch.no_grad():
        expected = torch.cat([student.eval()(some) for some in torch.split(shown, 200)])
    torch.save({"images": shown, "labels": labels, "expected": expected}, path.parent / "held_out.pt")
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(path), str(path.parent / "held_out.pt")]
    said = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=True).stdout
    write_json(kept, {**json.loads(said), "megabytes": path.stat().st_size / 1e6})


def page(given: argparse.Namespace, out: Path, space: Any, ranking: Any, seconds: float, found: dict[str, Any]) -> str:
    """What came of it."""
    best, original = ranking.best, ranking.best.teacher()
    shares = f"{best.params / original.params:.1%} of the parameters, {best.macs / original.macs:.1%} of the MACs"
    return f"""# A network of one's own, from end to end

torchvision's ResNet-18 with a 3x3 stem and no pooling, trained on {given.images:,} images of CIFAR-10 and judged on
{given.held_out:,} others; compressed to {given.budget} of its parameters, taught by attention transfer (beta
{given.beta:g}) and logit distillation, exported. Command:

    python benchmarks/own_model.py --data-root data/cifar10 --out own_model_study{_changed(given)}

Search: {len(space.blocks())} sites; the best of {len(list(ranking))}, found in {seconds:.0f} s, has {shares}:
`{" ".join(best.choices.values())}`.

{_results(out, best, original, found)}

With so few epochs and images the figures show that it works, not how good a network gets. One seed; the sampling error
of an accuracy on {given.held_out:,} images is about {100 * (0.2 / given.held_out) ** 0.5:.1f} points.

Loaded in a process in which `import nni_blockswap` fails, on the same held-out images; differences are from the student
in this process:

{_files(out, best)}

Machine: {processor()}, PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s), training in
{given.precision}. Seconds are by the clock, whatever else ran meanwhile.
Written by `benchmarks/own_model.py`.
"""


def _changed(given: argparse.Namespace) -> str:
    """The options that were not left as they are."""
    plain = vars(parser().parse_args(["--data-root", given.data_root, "--out", given.out]))
    changed = {name: value for name, value in vars(given).items() if value != plain[name]}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())


def _results(out: Path, best: Any, original: Any, found: dict[str, Any]) -> str:
    rows = [
        "| network | parameters | MACs | epochs | accuracy | best epoch | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        which, kept = original if name == "teacher" else best, read_json(out / name / "result.json")
        cells = [LABELS[name], f"{which.params:,}", f"{which.macs:,}", str(kept["epochs"])]
        cells += [f"{100 * result.metric:.1f} %", f"{100 * result.best:.1f} %", f"{kept['seconds']:.0f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _files(out: Path, best: Any) -> str:
    rows = ["| file | MB | bytes a parameter | accuracy | largest difference of a logit |", "|---|---|---|---|---|"]
    for start in STARTS:
        for ending in ENDINGS:
            one = read_json(out / f"student-{start}" / f"student{ending}.json")
            cells = [f"student-{start}/student{ending}", f"{one['megabytes']:.2f}"]
            cells += [f"{1e6 * one['megabytes'] / best.params:.2f}", f"{100 * one['accuracy']:.1f} %"]
            rows.append(f"| {' | '.join(cells)} | {one['difference']:.1e} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()

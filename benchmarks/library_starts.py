r"""What the beginnings of a library's candidates bring: their errors after some steps, by where they began.

- fresh: fresh weights, but of ``W(r)``, which has the original's;
- factors: what families take over from the original, by approximating its convolutions;
- fitted: as fresh, the last convolution fitted to what the original gives;
- both: as a library does it.

Errors of 0 steps are those of the beginnings themselves. Each number of steps is a library of its own, as the rate
falls over the steps. Resumable: what was stopped goes on where it was, and OUT/library_starts.md is written after each
library with what there is, of all data sets in OUT. ``--publish`` writes it to benchmarks/results, too.

    python benchmarks/library_starts.py --out starts --data digits --image-size 8 --data-option image_size=8 \
        --in-channels 1 --teacher digits/weights.pt
    python benchmarks/library_starts.py --out starts --data cifar10 --data-root DIR --image-size 16 \
        --data-option image_size=16 --data-option augment=crop+flip --teacher cifar10/weights.pt

with teachers of ``python -m trial.teacher --space search_spaces.wide_resnet:WideResNetSpace --space-arg depth=16
width=2 image_size=SIDE in_channels=N --out DIR``, the same options of the data, and ``--epochs 12 --batch-size 64`` on
digits, ``--epochs 8`` on CIFAR-10.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor  # noqa: E402
from nni_blockswap.blocks.site import Site  # noqa: E402
from nni_blockswap.blocks.substitutes.narrowed import NARROWED  # noqa: E402
from nni_blockswap.files import read_json, write_json, write_text  # noqa: E402
from nni_blockswap.key_values import key_values  # noqa: E402
from nni_blockswap.library.bench import Bench  # noqa: E402
from nni_blockswap.library.building import build  # noqa: E402
from nni_blockswap.library.fitting import LastConvolution  # noqa: E402
from nni_blockswap.library.settings import LibrarySettings  # noqa: E402

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
STARTS = ("fresh", "factors", "fitted", "both")
FAMILIES = {"G": "G(g)", "B": "B(b)", "BG": "BG(b,g)", "W": "W(r)"}


def main() -> None:
    """All libraries that are asked for and not there yet; a table after each."""
    torch.set_num_threads(1)
    given = parser().parse_args()
    for steps in given.steps:
        for start in given.starts:
            teach(given, start, steps)
            page = written(given.out)
            write_text(given.out / "library_starts.md", page)
            if given.publish:
                write_text(ROOT / "benchmarks" / "results" / "library_starts.md", page)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    command.add_argument("--out", required=True, type=Path)
    command.add_argument("--teacher", required=True)
    command.add_argument("--data", default="digits")
    command.add_argument("--data-root")
    command.add_argument("--data-option", action="append", default=[])
    for name, default in (("depth", 16), ("width", 2), ("image-size", 32), ("in-channels", 3)):
        command.add_argument(f"--{name}", type=int, default=default)
    command.add_argument("--steps", nargs="+", type=int, default=[160, 20, 40, 80])
    command.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    command.add_argument("--lr", type=float, default=1e-2)
    command.add_argument("--publish", action="store_true", help="write benchmarks/results, too")
    return command


def teach(given: argparse.Namespace, start: str, steps: int) -> None:
    """One library, unless it is there."""
    home = given.out / f"{given.data}-{given.lr:g}"
    folder = home / f"{start}-{steps}"
    if (folder / "errors.json").exists():
        return
    space_args = {"depth": given.depth, "width": given.width, "image_size": given.image_size,
                  "in_channels": given.in_channels, "extra": ["W(1/4)", "W(1/2)", "W(3/4)"]}  # fmt: skip
    settings = LibrarySettings(
        space=SPACE, space_args=space_args, teacher=given.teacher, data=given.data, data_root=given.data_root,
        data_options=key_values(given.data_option, "--data-option"), device="cpu", steps=steps, lr=given.lr,
    )  # fmt: skip
    with begun(start, folder / "starts"):
        library = build(settings, folder / "library")
    begins = [read_json(path) for path in sorted((folder / "starts").iterdir())]
    write_json(folder / "errors.json", {"0": means(begins), str(steps): means(
        {name: error.value for name, error in errors.items()} for errors in library.errors.values()
    )})  # fmt: skip
    print(given.data, start, steps, read_json(folder / "errors.json"), flush=True)


@contextmanager
def begun(start: str, folder: Path) -> Iterator[None]:
    """Libraries whose candidates begin so, and that write the errors of that into ``folder``, a file a block."""
    inherit, mark = Site.inherit, Bench.mark

    def only_narrowed(site: Site, name: str, *others: Any) -> bool:
        return NARROWED.reads(name) and inherit(site, name, *others)

    def noted(bench: Bench, errors: Mapping[str, Any]) -> None:
        mark(bench, errors)
        write_json(folder / f"{bench.block.label}.json", {name: error.value for name, error in errors.items()})

    with ExitStack() as patches:
        patches.enter_context(patch.object(Bench, "mark", noted))
        if start in ("fresh", "fitted"):
            patches.enter_context(patch.object(Site, "inherit", only_narrowed))
        if start in ("fresh", "factors"):
            patches.enter_context(patch.object(LastConvolution, "solve", lambda fit: None))
        yield


def means(blocks: Any) -> dict[str, float]:
    """The mean error of each family, over all of its candidates of all blocks."""
    found: dict[str, list[float]] = {}
    for errors in blocks:
        for name, error in errors.items():
            if name != "S":
                found.setdefault(name.partition("(")[0], []).append(error)
    return {family: sum(errors) / len(errors) for family, errors in found.items()}


def written(out: Path) -> str:
    """The page: a table for each data set and rate."""
    parts = [
        "# Where a library's candidates begin",
        "",
        __doc__.partition("\n\n")[2].rstrip(),
        "",
    ]
    parts += ["Mean normalised error of a family's candidates in all blocks of WRN-16-2: 0 is the original, 1 what the",
              "best constant a channel would give; on training images that were held out.", ""]  # fmt: skip
    for home in sorted(path for path in out.iterdir() if path.is_dir()):
        data, _, rate = home.name.partition("-")
        cells: dict[tuple[str, str], dict[int, float]] = {}
        for path in home.glob("*/errors.json"):
            for steps, errors in read_json(path).items():
                for family, error in errors.items():
                    cells.setdefault((family, path.parent.name.rpartition("-")[0]), {})[int(steps)] = error
        counts = sorted({steps for cell in cells.values() for steps in cell})
        heads = " | ".join(f"{n} steps" for n in counts)
        parts += [f"## {data}, first rate {rate}", ""]
        parts += [f"| family | begins | {heads} |", "|---" * (2 + len(counts)) + "|"]
        for family, called in FAMILIES.items():
            for start in STARTS:
                if cell := cells.get((family, start)):
                    row = [f"{cell[steps]:.3f}" if steps in cell else "-" for steps in counts]
                    parts.append(f"| {called} | {start} | {' | '.join(row)} |")
        parts.append("")
    return "\n".join([*parts, f"Machine: {processor()}, PyTorch {torch.__version__}. "
                      "Written by `benchmarks/library_starts.py`.", ""])  # fmt: skip


if __name__ == "__main__":
    main()

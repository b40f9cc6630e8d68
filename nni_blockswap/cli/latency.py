"""Measure whole networks on this machine, side by side."""

import argparse
from importlib.metadata import version
from typing import Any

from nni_blockswap.trust import add_allow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("architectures", nargs="+", metavar="ARCH", help="files as a search or a trial writes them")
    add_allow(parser)
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="on a CPU (default: as many as torch takes)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument(
        "--runtime", default="torch", choices=("torch", "onnxruntime"), help="what runs them (default torch)"
    )
    parser.add_argument("--no-teacher", dest="teacher", action="store_false", help="leave the original network out")


def run(options: argparse.Namespace) -> int:
    """Print a line a network: costs, milliseconds, and times faster than its teacher, or else than the first."""
    import torch

    from nni_blockswap.architecture import Architecture
    from nni_blockswap.ranges import check_count
    from nni_blockswap.results.tables import markdown
    from nni_blockswap.scoring.machine import resolve_device
    from nni_blockswap.scoring.settings import LARGEST
    from nni_blockswap.studies.latency import measure

    check_count("--batch-size", options.batch_size, LARGEST["batch_size"])
    if options.threads is not None:
        check_count("--threads", options.threads, LARGEST["processes"])
        torch.set_num_threads(options.threads)
    found = {path: Architecture.load(path) for path in options.architectures}
    teachers = {one.teacher().id: one.teacher() for one in found.values()} if options.teacher else {}
    named = {known: "teacher" if len(teachers) == 1 else f"teacher {known}" for known in teachers}
    found = {**{named[known]: one for known, one in teachers.items()}, **found}
    networks: dict[str, Any] = {name: one.build() for name, one in found.items()}
    taken = measure(networks, options.batch_size, options.device, options.runtime)
    first = next(iter(taken))
    before = [taken[named.get(one.teacher().id, first)].mean for one in found.values()]
    rows: list[tuple[str, ...]] = [("network", "parameters", "MACs", "ms", "+-", "faster")]
    rows += [
        (name, f"{one.params:,}", f"{one.macs:,}", f"{1e3 * time.mean:.3f}", f"{1e3 * time.spread:.3f}",
         f"{teachers_mean / time.mean:.2f}")
        for (name, one), time, teachers_mean in zip(found.items(), taken.values(), before, strict=True)
    ]  # fmt: skip
    print(markdown(rows))
    on_gpu = options.runtime == "torch" and resolve_device(options.device).type == "cuda"
    where = "GPU" if on_gpu else f"{torch.get_num_threads()} threads"
    what = f"torch {torch.__version__}" if options.runtime == "torch" else f"onnxruntime {version('onnxruntime')}"
    print(f"\nBatches of {options.batch_size}, {where}, {what}: mean and spread over rounds.")
    return 0

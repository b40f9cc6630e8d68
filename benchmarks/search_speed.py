"""How fast is a search? WRN-40-2, 400K parameters +- 2.5 %, batch 128 of CIFAR-10, one draw of the weights.

In one run, side by side:

- the whole command `blockswap search`, start to end, in float32 and in bfloat16;
- the straightforward way, as the paper's authors' script goes: propose random architectures, build each, count its
  parameters, and give those in the budget a full backward pass, weights and all, with hooks at the probes; a few
  before, between and after, so that a machine that gets busier shows;
- what a candidate's convolutions alone take, forward and backward to their input; on a GPU also its launches;
- the memory that a process needs at its peak.

Writes the section of the device, a GPU where there is one, into benchmarks/results/search_speed.md, and leaves the
other. A quarter of an hour on two quiet cores; `--samples 100` for a quick look.

    python benchmarks/search_speed.py --data-root data/cifar10
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor, wait, write_section  # noqa: E402
from benchmarks.precision import SPACE  # noqa: E402
from nni_blockswap.blocks.space import BlockSpace  # noqa: E402
from nni_blockswap.cost.budget import Budget  # noqa: E402
from nni_blockswap.methods.sampler import Sampler  # noqa: E402
from nni_blockswap.scoring.engines import choose  # noqa: E402
from nni_blockswap.scoring.engines.cuda_graphs import CudaRecorder  # noqa: E402
from nni_blockswap.scoring.machine import autocast  # noqa: E402
from nni_blockswap.scoring.proxies import make_proxy  # noqa: E402
from nni_blockswap.scoring.scorer import Scorer  # noqa: E402
from nni_blockswap.scoring.settings import ScoreSettings  # noqa: E402
from nni_blockswap.spaces import ALWAYS, cost_table, load_space  # noqa: E402
from nni_blockswap.tasks import make_task  # noqa: E402
from search_spaces.wide_resnet import WideResNetSpace  # noqa: E402

BUDGET, TOLERANCE, BATCH = "400K", 0.025, 128
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADER = f"""# Speed of a search

WRN-40-2, {BUDGET} parameters within {100 * TOLERANCE} %, batch {BATCH} of CIFAR-10, one draw of the weights.
Command, on either device: `python benchmarks/search_speed.py --data-root data/cifar10`. What each idea brings on a CPU
is in search_ideas.md.

"""


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--samples", type=int, default=1000, help="candidates of the whole command")
    parser.add_argument("--plain", type=int, default=4, help="candidates of the straightforward way, three times")
    parser.add_argument("--floor", type=int, default=6, help="candidates whose convolutions are timed alone")
    parser.add_argument("--peak", choices=["start", "keep", "recompute"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.data_root, options.peak))
        return
    plain = straightforward(options.data_root, options.plain, seed=0)
    whole: dict[str, float] = {}
    for seed, precision in enumerate(("float32", "bf16"), start=1):
        whole[precision] = command(options.data_root, options.samples, precision)
        plain += straightforward(options.data_root, options.plain, seed)
    floors = {precision: floor(options.data_root, precision, options.floor) for precision in whole}
    peaks = {stage: peak_of_a_process(options.data_root, stage) for stage in ("start", "keep", "recompute")}
    found = section(options.samples, plain, whole, floors, peaks, around(options.data_root))
    write_section(ROOT / "benchmarks" / "results" / "search_speed.md", HEADER, found)


@dataclass
class Plain:
    """Seconds of one candidate found and scored the straightforward way."""

    proposals: int
    proposing: float
    scoring: float


def straightforward(data_root: str, count: int, seed: int) -> list[Plain]:
    """Propose, build, count, reject; then hooks and a full backward pass. On all of PyTorch's threads, in float32."""
    rng = np.random.default_rng(seed)
    task = make_task("cifar10", data_root)
    images, labels = task.to(task.minibatch(BATCH, seed=0), DEVICE)
    low, high = 400_000 * (1 - TOLERANCE), 400_000 * (1 + TOLERANCE)
    table = cost_table(SPACE)
    found = []
    for turn in range(count + 1):  # the first warms up
        start, proposals, network = time.perf_counter(), 0, None
        while network is None or not low <= sum(p.numel() for p in network.parameters()) <= high:
            network = WideResNetSpace.build(table.names([int(rng.integers(len(names))) for names in table.candidates]))
            proposals += 1
        middle = time.perf_counter()
        full_backward(network.to(DEVICE), images, labels)
        if turn:
            found.append(Plain(proposals, middle - start, time.perf_counter() - middle))
    return found


def full_backward(network: Any, images: Tensor, labels: Tensor) -> float:
    """Fisher potential by hooks on the last convolutions, with the gradients of all weights."""
    activations: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        activations.append(output)

    for block in network.blocks():
        block.probe.register_forward_hook(keep)
    F.cross_entropy(network.train()(images), labels).backward()  # type: ignore[no-untyped-call]
    terms = [(a * a.grad).sum((2, 3)).square().sum() / (2 * BATCH) for a in activations if a.grad is not None]
    return float(torch.stack(terms).detach().sum())


def command(data_root: str, samples: int, precision: str) -> float:
    """Seconds of the whole command, the start of Python included."""
    arguments = f"search --space {SPACE} --data cifar10 --budget {BUDGET} --tolerance {TOLERANCE} --batch-size {BATCH}"
    more = ["--data-root", data_root, "--samples", str(samples), "--precision", precision, "--device", DEVICE.type]
    program = "import sys; from nni_blockswap.cli import main; sys.exit(main())"
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", program, *arguments.split(), *more, "--out", out],
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - start


def scorer(data_root: str, **settings: Any) -> Scorer:
    """Of the fixed piece of work."""
    fixed = ScoreSettings(space=SPACE, data="cifar10", batch_size=BATCH, device=DEVICE.type, **settings)
    return Scorer(fixed, make_task("cifar10", data_root), make_proxy("fisher"))


def samples_of(count: int) -> list[dict[str, str]]:
    """Random candidates in the budget."""
    table = cost_table(SPACE)
    found = Sampler(table, Budget.parse(BUDGET, TOLERANCE)).sample(count, np.random.default_rng(0))
    return [table.names(indices) for indices in found]


def now() -> float:
    """Seconds: of the processor, as other processes disturb those least, or on a GPU of the clock, when it is done."""
    wait(DEVICE)
    return time.process_time() if DEVICE.type == "cpu" else time.perf_counter()


def floor(data_root: str, precision: str, count: int) -> tuple[float, float]:
    """Seconds of a candidate that shares no block with the one before, and of its convolutions alone."""
    torch.set_num_threads(1)
    judge = scorer(data_root, precision=precision)
    network = judge.super_network(0)
    work = replace(judge.work(0), draw=lambda: network)
    measure = choose(work).start(work)()
    distinct = {choices["block_00"]: choices for choices in samples_of(200)}
    candidates = [*distinct.values()][: count + 1]
    for choices in candidates:
        measure(choices)  # warms up; on a GPU it is recorded
    whole, alone = [], []
    for choices in candidates:
        start = now()
        measure(choices)
        whole.append(now() - start)
        alone.append(convolutions_alone(network, choices, judge))
    return sum(whole[1:]) / count, sum(alone[1:]) / count


def launches(blocks: int) -> float:
    """Seconds that it takes to launch a candidate's CUDA graphs, each with as little in it as can be."""
    x = torch.zeros(1, device=DEVICE)
    (replay,) = CudaRecorder(DEVICE)(0, [lambda given: x.add_(1)])
    start = now()
    for _ in range(100 * (2 * blocks + 1)):
        replay()
    return (now() - start) / 100


def convolutions_alone(network: BlockSpace, choices: Mapping[str, str], judge: Scorer) -> float:
    """Processor seconds of the convolutions in the candidate's branches and shells, in the form in which they run."""
    seen: list[tuple[nn.Conv2d, Tensor, Tensor]] = []
    network.select(choices)
    handles = [
        conv.register_forward_hook(lambda conv, inputs, output: seen.append((conv, inputs[0], output)))
        for block in network.blocks()
        for conv in block.modules()
        if isinstance(conv, nn.Conv2d)
    ]
    with torch.no_grad(), autocast(judge.device, judge.precision):
        network(judge.measured[0][0].contiguous(memory_format=torch.channels_last))
    for handle in handles:
        handle.remove()
    start = now()
    for conv, x, output in seen:
        x = x.to(conv.weight.dtype)
        padding: Any = conv.padding
        F.conv2d(x, conv.weight, None, conv.stride, padding, conv.dilation, conv.groups)
        torch.ops.aten.convolution_backward(
            output,
            x,
            conv.weight,
            None,
            conv.stride,
            padding,
            conv.dilation,
            False,
            [0, 0],
            conv.groups,
            [True, False, False],
        )
    return now() - start


def peak(data_root: str, stage: str) -> int:
    """Bytes held at most, on a GPU in its memory, once the super-network stands or some candidates are scored."""
    judge = scorer(data_root, precision="float32", processes=1, recompute=stage == "recompute")
    if stage == "start":
        judge.super_network(0)
    else:
        list(judge.scores(0, samples_of(5)))
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()  # getrusage would tell the peak of the process that started this one
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def peak_of_a_process(data_root: str, stage: str) -> int:
    """``peak`` in a process of its own."""
    arguments = [sys.executable, __file__, "--data-root", data_root, "--peak", stage]
    return int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def around(data_root: str) -> dict[str, float]:
    """Seconds of what is done once in a search."""
    found = {}
    for module in ("torch", "nni_blockswap"):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=ROOT)
        found[f"`import {module}`, Python's start included"] = time.perf_counter() - start
    space = load_space(SPACE)
    start = time.perf_counter()
    table = space.cost_table(ALWAYS)
    found["tables of costs"] = time.perf_counter() - start
    for budget in ("150K", BUDGET):
        start = time.perf_counter()
        Sampler(table, Budget.parse(budget, TOLERANCE)).sample(1000, np.random.default_rng(0))
        found[f"1000 architectures at {budget}"] = time.perf_counter() - start
    judge = scorer(data_root)
    start = time.perf_counter()
    judge.super_network(0)
    found["super-network with its weights"] = time.perf_counter() - start
    return found


def section(
    samples: int,
    plain: list[Plain],
    whole: dict[str, float],
    floors: dict[str, tuple[float, float]],
    peaks: dict[str, int],
    once: dict[str, float],
) -> str:
    """The results on this device, in Markdown."""
    gpu = DEVICE.type == "cuda"
    scoring = float(np.mean([one.scoring for one in plain]))
    proposing = float(np.mean([one.proposing for one in plain]))
    proposals = float(np.mean([one.proposals for one in plain]))
    lines = [
        f"## {'GPU' if gpu else 'CPU'}",
        "",
        f"{torch.cuda.get_device_name() if gpu else processor()}; PyTorch {torch.__version__}; {samples} candidates; "
        f"load at the end {os.getloadavg()[0]:.1f}.",
        "",
        "| | seconds | candidates/s | times the straightforward way | ... its rejected proposals not counted |",
        "|---|---|---|---|---|",
        f"| straightforward, a candidate | {proposing:.2f} ({proposals:.0f} proposals) + {scoring:.2f} "
        f"| {1 / (proposing + scoring):.3f} | 1 | 1 |",
    ]
    for precision, seconds in whole.items():
        rate = samples / seconds
        lines.append(
            f"| `blockswap search`, {precision}, whole command | {seconds:.0f} | {rate:.2f} "
            f"| {rate * (proposing + scoring):.1f} | {rate * (proposing / proposals + scoring):.1f} |"
        )
    unit = "s" if gpu else "processor s"
    lines += ["", f"| one process, no block shared | {unit} | convolutions alone | ratio |", "|---|---|---|---|"]
    for precision, (run, alone) in floors.items():
        lines.append(f"| {precision} | {run:.2f} | {alone:.2f} | {run / alone:.2f} |")
    start, keep, recompute = (peaks[stage] / 2**20 for stage in ("start", "keep", "recompute"))
    lines += [
        "",
        f"Peak memory of a process{' on the GPU' if gpu else ''}, float32: {start:.0f} MiB with the super-network, "
        "Python and PyTorch included; "
        f"{keep:.0f} MiB with candidates scored; {recompute:.0f} MiB with `--recompute`.",
        "",
        "| once a search | seconds |",
        "|---|---|",
        *(f"| {what} | {seconds:.3f} |" for what, seconds in once.items()),
    ]
    if gpu:
        lines += ["", f"Launching a candidate's graphs alone takes {1e3 * launches(18):.2f} ms."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

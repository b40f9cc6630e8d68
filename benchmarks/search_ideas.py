"""What each idea brings to the speed of a search on a CPU: predicted, and measured one on top of the other.

WRN-40-2, 400K parameters +- 2.5 %, batch 128 of CIFAR-10, as in search_speed.py. All ways score the same candidates on
one thread, one after the other; processor seconds, as other processes disturb them least. Writes
benchmarks/results/search_ideas.md. Five minutes.

    python benchmarks/search_ideas.py --data-root data/cifar10
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor  # noqa: E402
from benchmarks.precision import SPACE  # noqa: E402
from benchmarks.search_speed import full_backward, samples_of, scorer  # noqa: E402
from nni_blockswap.architecture import Architecture  # noqa: E402
from nni_blockswap.files import write_text  # noqa: E402
from nni_blockswap.scoring.engines import cpu_layers  # noqa: E402
from nni_blockswap.scoring.engines.chain import FisherChain  # noqa: E402
from nni_blockswap.scoring.machine import keep_freed_memory  # noqa: E402
from nni_blockswap.scoring.proxies.fisher import FisherPotential  # noqa: E402
from nni_blockswap.scoring.scorer import Scorer  # noqa: E402

Choices = Mapping[str, str]
Measure = Callable[[Choices], object]

IDEAS = {
    "built anew, full backward pass": "",
    "one super-network, gradients at the probes alone": "1.5: two of three convolutions in a backward pass",
    "channels last; each block's graph apart": "1.2: no change of layout around each convolution",
    "freed memory kept": "1.1: no pages to fetch and to clear for every tensor",
    "groups of at least 8 channels; BN and ReLU in one": "1.2: narrow groups take a slow path; 6 passes instead of 8",
    "bfloat16": "2: twice the arithmetic, half the bytes",
    "BN, ReLU and Fisher information compiled": "1.3: fewer passes; they were 0.25 s, and slow in bfloat16",
    "candidates in order, first blocks shared": "1.07: about 2.2 of 35 passes through a block",
}
"""Idea -> times faster than the one before, as predicted."""

NOT_KEPT = """
Tried and not kept:

| idea | predicted | measured |
|---|---|---|
| huge pages for tensors (`THP_MEM_ALLOC_ENABLE=1`, glibc's `hugetlb=1`) | 1.1 | 0.8 and 0.9: clearing them costs more |
| oneDNN's own tensor layout throughout | 1.2 | its BN there takes ten times as long; no bfloat16 weights |
| BN's backward pass as sums over the image's columns and one affine map, by PyTorch's operators | 1.1 | 1.0 |
| the same in pieces that stay in the cache | 1.1 | 0.7 to 1.0 |
| BN as a group normalisation of one image | none | 0.02: its backward pass takes 90 to 180 ms a layer |
| prefetching in the compiled passes | 1.1 | 1.2 on the one pass that it was tried on, not worth its lines |
| ReLU's backward pass on bfloat16 as integers | 1.05 | 1.0; the forward pass does gain, seven times its speed |
"""


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument(
        "--candidates", type=int, default=6, help="for each way; those in order are eight times as many"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    judge, judge16 = (scorer(options.data_root, precision=precision) for precision in ("float32", "bf16"))
    population = sorted(samples_of(1000), key=lambda choices: list(choices.values()))
    apart = population[:: len(population) // options.candidates][: options.candidates]
    neighbours = population[len(population) // 2 :][: 8 * options.candidates]
    ways: list[tuple[Callable[[], Measure], Sequence[Choices]]] = [
        (lambda: built_anew(judge), apart),
        (lambda: super_network(judge), apart),
        (lambda: chained(judge), apart),
        (lambda: keeping(judge), apart),
        (lambda: fast(judge, is_compiled=False), apart),
        (lambda: fast(judge16, is_compiled=False), apart),
        (lambda: fast(judge16, is_compiled=True), apart),
        (lambda: fast(judge16, is_compiled=True), neighbours),
    ]
    seconds = {}
    for idea, (start, candidates) in zip(IDEAS, ways, strict=True):
        seconds[idea] = measured(start(), candidates)
        print(f"{idea}: {seconds[idea]:.3f} s a candidate", flush=True)
    text = report(seconds)
    write_text(ROOT / "benchmarks" / "results" / "search_ideas.md", text)


def built_anew(judge: Scorer) -> Measure:
    """The straightforward way, building included, rejected proposals not."""
    images, labels = judge.measured[0]
    space_args = judge.space_args

    def measure(choices: Choices) -> float:
        network: Any = Architecture.from_choices(SPACE, choices, space_args).build()
        return full_backward(network, images, labels)

    return measure


def super_network(judge: Scorer) -> Measure:
    """The plain way of the package."""
    network = judge.super_network(0)
    return lambda choices: judge.score(network, choices)


def chained(judge: Scorer) -> Measure:
    """Block after block, in PyTorch's own layers."""
    network = judge.super_network(0)
    return FisherChain(network.to(memory_format=torch.channels_last), judge.task, judge.measured).measure


def keeping(judge: Scorer) -> Measure:
    """The same; from here on the process keeps freed memory."""
    keep_freed_memory()
    return chained(judge)


def fast(judge: Scorer, is_compiled: bool) -> Measure:
    """As a search does it, where there is a C compiler and where there is none."""
    return cpu_layers.start(
        lambda: judge.super_network(0), FisherPotential(), judge.measured, judge.precision, False, is_compiled
    )


def measured(measure: Measure, candidates: Sequence[Choices]) -> float:
    """Mean processor seconds of a candidate; the first one warms up."""
    found = []
    for choices in [candidates[-1], *candidates]:
        start = time.process_time()
        measure(choices)
        found.append(time.process_time() - start)
    return statistics.mean(found[1:])


def report(seconds: Mapping[str, float]) -> str:
    """The table, in Markdown."""
    lines = [
        "# What makes a search fast",
        "",
        "Fisher potential of WRN-40-2's candidates at 400K parameters, batch 128 of CIFAR-10, one thread, processor "
        "seconds; each line adds an idea to those above it.",
        f"{processor()}; PyTorch {torch.__version__}. "
        "Command: `python benchmarks/search_ideas.py --data-root data/cifar10`.",
        "",
        "| idea | predicted gain, times | s a candidate | gain, times | all so far |",
        "|---|---|---|---|---|",
    ]
    before = first = next(iter(seconds.values()))
    for idea, found in seconds.items():
        lines.append(f"| {idea} | {IDEAS[idea]} | {found:.2f} | {before / found:.2f} | {first / found:.1f} |")
        before = found
    return "\n".join(lines) + "\n" + NOT_KEPT


if __name__ == "__main__":
    main()

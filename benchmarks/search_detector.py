"""Seconds for one candidate of Mask R-CNN, the plain way and as a search goes, and whether both say the same.

Candidates of 60 % of the parameters in the order in which a search scores them, batch 2 of COCO, one draw of the
weights; each is scored one way and then the other, in a process of its own on one thread. Seconds are the processor's.
A search runs a process a core beside that.

    python benchmarks/search_detector.py --data-root data/coco [--samples 8] [--short-side 400]
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor  # noqa: E402
from nni_blockswap.cost.budget import Budget  # noqa: E402
from nni_blockswap.methods.sampler import Sampler  # noqa: E402
from nni_blockswap.scoring.engines import ENGINES, Measure  # noqa: E402
from nni_blockswap.scoring.proxies import make_proxy  # noqa: E402
from nni_blockswap.scoring.scorer import Scorer  # noqa: E402
from nni_blockswap.scoring.settings import ScoreSettings  # noqa: E402
from nni_blockswap.spaces import cost_table  # noqa: E402
from nni_blockswap.tasks import make_task  # noqa: E402

SPACE, WAYS = "search_spaces.mask_rcnn:MaskRCNNSpace", ("plain", "chain")
_ways: dict[str, Measure] = {}


def main() -> None:
    """Score in turns, and print a line a candidate and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--short-side", type=int, default=800)
    options = parser.parse_args()
    sizes = {"min_size": options.short_side, "max_size": options.short_side * 5 // 3}
    table = cost_table(SPACE, sizes)
    drawn = Sampler(table, Budget.parse("60%")).sample(options.samples, np.random.default_rng(0))
    candidates = sorted((table.names(indices) for indices in drawn), key=lambda one: list(one.values()))
    apart = multiprocessing.get_context("spawn")
    teams = {
        way: ProcessPoolExecutor(1, apart, initializer=begin, initargs=(way, options.data_root, sizes)) for way in WAYS
    }
    seconds, values = np.zeros((2, options.samples)), np.zeros((2, options.samples))
    for column, choices in enumerate(candidates):
        for row, way in enumerate(WAYS):
            values[row, column], seconds[row, column] = teams[way].submit(measured, way, choices).result()
        print(*(f"{way} {seconds[row, column]:.2f} s" for row, way in enumerate(WAYS)), *values[:, column], flush=True)
    plain, chain = seconds[:, 1:].mean(1)  # the first warms up
    print(f"{processor()}, PyTorch {torch.__version__}; short side {options.short_side}, {options.samples} candidates")
    print(
        f"plain {plain:.2f} s, chain {chain:.2f} s a candidate, ratio {plain / chain:.2f}; largest relative difference "
        f"{abs(values[1] / values[0] - 1).max():.1e}, Spearman {spearmanr(*values).statistic:.4f}"
    )


def begin(way: str, data_root: str, sizes: Mapping[str, int]) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    settings = ScoreSettings(
        space=SPACE, space_args=sizes, data="coco", data_root=data_root, batch_size=2, device="cpu"
    )  # fmt: skip
    work = Scorer(settings, make_task("coco", data_root), make_proxy("fisher")).work(0)
    _ways[way] = ENGINES[way].start(work)()


def measured(way: str, choices: Mapping[str, str]) -> tuple[float, float]:
    """The score, and the processor's seconds that it took."""
    start = time.process_time()
    return _ways[way](choices).value, time.process_time() - start


if __name__ == "__main__":
    main()

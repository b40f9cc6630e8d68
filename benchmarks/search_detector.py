"""Seconds for one candidate of Mask R-CNN, the plain way and as a search goes, and whether both say the same.

Candidates of 60 % of the parameters in the order in which a search scores them, batch 2 of COCO at full size, one draw
of the weights; each is scored one way and then the other, in one process on one thread. Seconds are the processor's.
A search runs a process a core beside that.

    python benchmarks/search_detector.py --data-root data/coco [--samples 8] [--precision bf16]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor  # noqa: E402
from nni_blockswap.architecture import cost_table  # noqa: E402
from nni_blockswap.cost.budget import Budget  # noqa: E402
from nni_blockswap.methods.sampler import Sampler  # noqa: E402
from nni_blockswap.scoring.engines import choose  # noqa: E402
from nni_blockswap.scoring.engines.plain import PLAIN  # noqa: E402
from nni_blockswap.scoring.proxies import make_proxy  # noqa: E402
from nni_blockswap.scoring.scorer import Scorer  # noqa: E402
from nni_blockswap.scoring.settings import ScoreSettings  # noqa: E402
from nni_blockswap.tasks import make_task  # noqa: E402

SPACE = "search_spaces.mask_rcnn:MaskRCNNSpace"


def main() -> None:
    """Score in turns, and print a line a candidate and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = ScoreSettings(
        space=SPACE, data="coco", data_root=options.data_root, batch_size=2, device="cpu", precision=options.precision
    )
    scorer = Scorer(settings, make_task("coco", options.data_root), make_proxy("fisher"))
    table = cost_table(SPACE)
    drawn = Sampler(table, Budget.parse("60%")).sample(options.samples, np.random.default_rng(0))
    candidates = sorted((table.names(indices) for indices in drawn), key=lambda one: list(one.values()))
    work = scorer.work(0)
    ways = {engine.name: engine.start(work)() for engine in (PLAIN, choose(work))}
    values: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for choices in candidates:
        for name, measure in ways.items():
            start = time.process_time()
            values[name].append(measure(choices).value)
            seconds[name].append(time.process_time() - start)
        print(*(f"{name} {seconds[name][-1]:.2f} s {values[name][-1]:.7g}" for name in ways), sep="; ", flush=True)
    (_, plain), (fast, found) = values.items()
    means = {name: float(np.mean(each[1:])) for name, each in seconds.items()}  # the first warms up
    print(f"{processor()}, PyTorch {torch.__version__}, {options.precision}")
    print(*(f"{name} {mean:.2f} s a candidate" for name, mean in means.items()), sep="; ")
    print(
        f"ratio {means['plain'] / means[fast]:.2f}; largest relative difference of a score "
        f"{max(abs(a / b - 1) for a, b in zip(found, plain, strict=True)):.1e}; "
        f"Spearman {spearmanr(found, plain).statistic:.4f}"
    )


if __name__ == "__main__":
    main()

"""Latency of networks on this machine, side by side: in rounds, so that what disturbs the machine disturbs them all."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch

from nni_blockswap.blocks.space import BlockSpace, input_size_of
from nni_blockswap.exporting.onnx_session import session
from nni_blockswap.scoring.machine import resolve_device

ROUNDS = 5
SECONDS = 0.2
"""Time that each network runs in a round, after a warm-up."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one forward pass: mean and standard deviation over the rounds."""

    mean: float
    spread: float


def measure(
    networks: Mapping[str, BlockSpace], batch_size: int = 1, device: str = "auto", runtime: str = "torch"
) -> dict[str, Timing]:
    """Latency of each of ``networks`` on a batch of images of the size that it is for, in evaluation mode.

    Each runs ``SECONDS`` in each of ``ROUNDS``; a GPU is waited for before the clock is read.

    Args:
        runtime: ``torch``, or ``onnxruntime``, which runs on the CPU.
    """
    where = resolve_device(device) if runtime == "torch" else torch.device("cpu")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # the timer's: no GPU for a CUDA compiler
    from torch.utils.benchmark import Timer

    def run(network: Any) -> Callable[[], object]:
        images = torch.zeros(batch_size, *input_size_of(network), device=where)
        if runtime == "torch":
            return partial(network, images)
        return session(network, images, torch.get_num_threads())

    timers = {
        name: Timer("run()", globals={"run": run(network.to(where).eval())}, num_threads=torch.get_num_threads())
        for name, network in networks.items()
    }
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for one in timers.values():
            one.timeit(3)
        for _ in range(ROUNDS):
            for name, one in timers.items():
                times[name].append(one.blocked_autorange(min_run_time=SECONDS).median)
    return {name: Timing(mean(found), stdev(found)) for name, found in times.items()}

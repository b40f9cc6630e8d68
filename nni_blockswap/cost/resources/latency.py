"""Latency: what a forward pass takes, predicted by a sum over the sites that is measured on this machine.

Every candidate of each site is timed in place: on what really enters it there. A few whole networks are timed beside
them, and the sum over the sites is fitted to what they take,

    latency(architecture) = a + b * sum_b time(candidate of block b)        in whole microseconds, a and b at least 0

by least squares of the relative error; how well it predicts is measured on other whole networks.
"""

import hashlib
import json
import logging
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.stats import spearmanr
from torch import Tensor, nn

import nni_blockswap
from nni_blockswap.cost.resources.base import RealNetwork
from nni_blockswap.cost.resources.timing import Rounds
from nni_blockswap.cost.table import Column, Indices, Table
from nni_blockswap.errors import BudgetError, first_line
from nni_blockswap.exporting.onnx_session import session
from nni_blockswap.files import expanded, read_json, write_json
from nni_blockswap.processes import threads

_log = logging.getLogger(__name__)

ROUNDS = 15
FITTED, HELD_OUT = 12, 30
"""Whole networks that the sum is fitted to, and others that its error is measured on."""

FAR = 0.5
"""A median error above it is no prediction: what was timed is the machine's other work."""


@dataclass(frozen=True)
class Conditions:
    """Under what a network runs.

    Attributes:
        device: ``cpu`` or ``cuda``.
        threads: on a CPU; None is all cores that this process may use.
        precision: ``float32`` or ``bf16``.
        channels_last: whether tensors are laid out so.
        batch_size: images at once.
        runtime: ``torch``, or ``onnxruntime``, in float32 on a CPU, as students are often deployed.

    Raises:
        BudgetError: one of them is none of these.
    """

    device: str = "cpu"
    threads: int | None = None
    precision: str = "float32"
    channels_last: bool = False
    batch_size: int = 1
    runtime: str = "torch"

    def __post_init__(self) -> None:
        known = {"device": ("cpu", "cuda"), "precision": ("float32", "bf16"), "runtime": ("torch", "onnxruntime")}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise BudgetError(f"latency is measured with {name} {' or '.join(choices)}, not {getattr(self, name)}.")
        if self.runtime == "onnxruntime" and (self.device, self.precision) != ("cpu", "float32"):
            raise BudgetError("ONNX Runtime is timed in float32 on a CPU; leave out device and precision.")

    def here(self) -> dict[str, Any]:
        """These, and the machine: a time is true of nothing else."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BudgetError("latency is to be measured on cuda, and this machine has none; measure it on cpu.")
        chip = torch.cuda.get_device_name() if self.device == "cuda" else _processor()
        own = {**asdict(self), "threads": self.threads or len(os.sched_getaffinity(0))}
        versions: dict[str, str] = {"torch": torch.__version__, "nni_blockswap": nni_blockswap.__version__}
        if self.runtime != "torch":
            versions[self.runtime] = version(self.runtime)
        return {**own, "chip": chip, "host": platform.node(), **versions}


class Latency:
    """Microseconds of a forward pass, under ``conditions``, on this machine.

    Rounds are kept as they come: a measurement that was killed goes on with the next. A table that was measured is kept
    in ``folder()`` and used again where machine, device, threads, versions, space and all conditions are the same, and
    nowhere else. Other conditions are another resource:

        EDGE = Latency(Conditions(threads=1, batch_size=8), "edge")     # --budget my_module:EDGE=12ms
    """

    unit = "microseconds"
    suffixes: Mapping[str, int] = {"us": 1, "ms": 1000, "s": 1_000_000}

    def __init__(self, conditions: Conditions | None = None, name: str = "latency") -> None:
        self.conditions, self.name = conditions or Conditions(), name

    def measure(self, build: Callable[[], RealNetwork], counted: Table) -> Column:
        """The column of a space: as it was measured here before, or measured now."""
        network = build()
        where = {**self.conditions.here(), "space": _fingerprint(network, counted)}
        name = hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:16]
        path = folder() / f"{name}.json"
        if not path.exists():
            _check_writable(self.name)
            conditions = replace(self.conditions, threads=where["threads"])
            _log.info("Measuring the latency of %d candidates.", sum(map(len, counted.candidates)))
            rounds = Rounds(path.with_suffix(".rounds.json"), self.name, ROUNDS)
            with threads(where["threads"]):
                table = {"where": where, **_measured(network, counted, conditions, rounds)}
            off = table["held_out"]["median_error"]
            if off > FAR:
                rounds.path.unlink(missing_ok=True)
                raise BudgetError(
                    f"{self.name} cannot be predicted by what was timed here: on {table['held_out']['networks']} whole "
                    f"networks it is {off:.0%} off (median); end what else runs on this machine, and measure again."
                )
            write_json(path, table)
            rounds.path.unlink(missing_ok=True)
        kept = read_json(path)
        costs = tuple(np.array(block, dtype=np.int64) for block in kept.pop("costs"))
        return Column(self.unit, kept.pop("fixed"), costs, source=kept)


LATENCY = Latency()
ONNX_LATENCY = Latency(Conditions(runtime="onnxruntime"), "onnx_latency")


def folder() -> Path:
    """Where tables are kept: latency/ below BLOCKSWAP_CACHE, by default ~/.cache/nni_blockswap."""
    return expanded(os.environ.get("BLOCKSWAP_CACHE", "~/.cache/nni_blockswap")) / "latency"


def _check_writable(name: str) -> None:
    """Raise BudgetError unless what takes minutes can be kept."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        if not os.access(folder(), os.W_OK):
            raise PermissionError("permission denied")
    except OSError as error:
        raise BudgetError(
            f"{name} is kept in '{folder()}', which cannot be written to ({first_line(error)}); name another folder by "
            "the environment variable BLOCKSWAP_CACHE."
        ) from error


def _measured(network: RealNetwork, counted: Table, conditions: Conditions, rounds: Rounds) -> dict[str, Any]:
    """The table's content: fixed part and costs, when they were measured, and how well they predict."""
    device = torch.device(conditions.device)
    layout = torch.channels_last if conditions.channels_last else torch.preserve_format
    network.to(device=device, memory_format=layout).eval()
    whole = spread(counted, FITTED + HELD_OUT)
    if len(whole) < FITTED + 2:
        raise BudgetError(
            f"latency is predicted for spaces of at least {FITTED + 2} architectures, and this one has {len(whole)}; "
            "time them all with 'blockswap latency'."
        )
    run = partial(network.run_counted, *((conditions.batch_size,) if conditions.batch_size > 1 else ()))
    with torch.inference_mode(), _precision(conditions):
        parts = _parts(network, counted, run)
        if conditions.runtime == "onnxruntime":
            runs = _in_onnx_runtime(network, counted, parts, whole, conditions, rounds.tell)
        else:
            runs = _in_torch(parts, whole, run)
        prepare = partial(_select, network, counted)
        seconds = {name: median(times) for name, times in rounds.made(runs, device, prepare).items()}
    times = [np.array([1e6 * seconds[key] for key in keys]) for keys in parts.keys]
    sums = np.array([sum(float(block[i]) for block, i in zip(times, row, strict=True)) for row in whole])
    taken = np.array([1e6 * seconds[row] for row in whole])
    design = np.column_stack([np.ones_like(sums), sums]) / taken[:, None]
    (fixed, scale), _ = nnls(design[:FITTED], np.ones(FITTED))
    predicted = (fixed + scale * sums)[FITTED:]
    correlation = spearmanr(predicted, taken[FITTED:]).statistic if np.ptp(predicted) > 0 else 0.0
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "held_out": {
            "networks": len(whole) - FITTED,
            "median_error": round(float(np.median(np.abs(predicted / taken[FITTED:] - 1))), 4),
            "rank_correlation": round(float(np.nan_to_num(correlation)), 4),
        },
        "fixed": round(fixed),
        "costs": [[round(float(scale * one)) for one in block] for block in times],
    }


@dataclass(frozen=True)
class _Parts:
    """The candidates of all blocks, each once: at sites alike, fed alike, it is the same one.

    Attributes:
        fed: each, and what enters it, by its key.
        keys: of each block's candidates.
    """

    fed: Mapping[Any, tuple[nn.Module, Tensor]]
    keys: Sequence[Sequence[Any]]


def _parts(network: RealNetwork, counted: Table, run: Callable[[], object]) -> _Parts:
    """Each candidate of each block, on what enters its branch when the whole network runs."""
    entering: dict[int, Tensor] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entering[id(module)] = inputs[0].clone()

    blocks = network.blocks()
    network.select(counted.names(counted.original()))
    branches = [block.active_branch() for block in blocks]
    handles = [branch.register_forward_pre_hook(record) for branch in branches]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    fed: dict[Any, tuple[nn.Module, Tensor]] = {}
    keys = []
    for block, branch in zip(blocks, branches, strict=True):
        x = entering[id(branch)]
        keys.append([(block.site, name, x.shape) for name in block.names])
        for key, name in zip(keys[-1], block.names, strict=True):
            fed.setdefault(key, (block.candidate(name), x))
    return _Parts(fed, keys)


def spread(table: Table, count: int) -> list[Indices]:
    """Distinct architectures from the cheapest to the dearest in parameters, so that a line can be fitted to them.

    For each, every block draws a place in the order of its candidates, near one that all blocks share.
    """
    rng = np.random.default_rng(0)
    orders = [np.argsort(block, kind="stable") for block in table.column("params").costs]
    found: dict[Indices, None] = {}
    for number in range(20 * count):
        shares = np.clip(number % count / max(count - 1, 1) + rng.normal(scale=0.2, size=len(orders)), 0, 1)
        picks = (shares * (np.array([len(order) for order in orders]) - 1)).round().astype(int)
        found[tuple(int(order[pick]) for order, pick in zip(orders, picks, strict=True))] = None
    rows = list(found)[:count]
    return [rows[i] for i in rng.permutation(len(rows))]


def _fingerprint(network: RealNetwork, table: Table) -> str:
    """Of the network's modules and of its table: what takes other time has other modules, or other costs."""
    costs = [table.candidates, *([c.fixed, *(b.tolist() for b in c.costs)] for c in table.columns.values())]
    modules = re.sub(r" at 0x[0-9a-f]+", "", repr(network))
    return hashlib.sha256(json.dumps([costs, modules]).encode()).hexdigest()[:16]


def _select(network: RealNetwork, counted: Table, key: Any) -> None:
    """Let ``network`` run the architecture of a row, before the clock starts; a candidate runs alone."""
    if isinstance(key[0], int):
        network.select(counted.names(key))


def _in_torch(parts: _Parts, whole: Sequence[Indices], run: Callable[[], object]) -> dict[Any, Callable[[], object]]:
    """What runs each candidate, by its key, and each whole network, by its row, once it is selected."""
    alone = {key: partial(candidate, x) for key, (candidate, x) in parts.fed.items()}
    return {**alone, **dict.fromkeys(whole, run)}


def _in_onnx_runtime(
    network: Any,
    counted: Table,
    parts: _Parts,
    whole: Sequence[Indices],
    conditions: Conditions,
    tell: Callable[[str], None],
) -> dict[Any, Callable[[], object]]:
    """The same as sessions of ONNX Runtime."""
    if getattr(network, "detects", False):
        raise BudgetError("a detector is not run in ONNX Runtime here; limit its latency in torch, latency=120ms.")
    with torch.inference_mode(False), torch.no_grad():  # torch.export takes no tensors made for inference
        images = torch.zeros(conditions.batch_size, *network.input_size)
        fed = {**parts.fed, **dict.fromkeys(whole, (network, images))}
        sessions: dict[Any, Callable[[], object]] = {}
        for key, (module, x) in fed.items():
            _select(network, counted, key)
            sessions[key] = session(module, x.clone(), conditions.threads or 1)
            tell(f"{len(sessions)} of {len(fed)} exported")
    return sessions


def _precision(conditions: Conditions) -> Any:
    if conditions.precision == "float32":
        return nullcontext()
    return torch.autocast(conditions.device, torch.bfloat16)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

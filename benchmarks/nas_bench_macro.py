r"""How well each proxy ranks networks that others trained: NAS-Bench-Macro, three runs of each on CIFAR-10.

The networks are built as a search space of this project, their costs are held against the table's, all rows of it, and
they are scored as a search scores: one super-network, one minibatch, fresh weights. Scores are kept as they come, so
that a killed run goes on. A combination, ``fisher+naswot``, is the sum of the ranks within the set that is reported.

    python benchmarks/nas_bench_macro.py --table nas_bench_macro_cifar10.csv --data-root data/cifar10 --out out
    python benchmarks/nas_bench_macro.py ... --band 1.14M 1.26M --networks 80 --proxies fisher fisher+naswot

With --teacher, weights of the largest network (MB6_K5 everywhere), the errors of a library that it teaches are proxies,
too: ``library`` and ``library_log``.

    python -m trial.teacher --space benchmarks.nas_bench_macro_space:TaughtMacroSpace --data cifar10 --data-root DIR \
        --data-option augment=crop+flip --out teacher
    python benchmarks/nas_bench_macro.py ... --teacher teacher/weights.pt

Writes OUT/correlations.csv: Spearman's rho and Kendall's tau with the test accuracy, +1 for a perfect proxy, and the
95 % interval of rho over 2,000 bootstrap resamples of the networks; and OUT/correlations.md, which has them for each
band of parameters, too. A network takes a second or so for each proxy.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.nas_bench_macro_space import NAMES  # noqa: E402
from nni_blockswap.errors import DataError  # noqa: E402
from nni_blockswap.files import write_text  # noqa: E402
from nni_blockswap.library import choosing  # noqa: E402
from nni_blockswap.library.building import build  # noqa: E402
from nni_blockswap.library.settings import LibrarySettings  # noqa: E402
from nni_blockswap.results.tables import markdown, write_csv  # noqa: E402
from nni_blockswap.scoring.proxies.combination import is_high_good, parts, scores_of  # noqa: E402
from nni_blockswap.scoring.settings import ScoreSettings  # noqa: E402
from nni_blockswap.searching import score  # noqa: E402
from nni_blockswap.spaces import cost_table  # noqa: E402
from nni_blockswap.studies.rank_study import bootstrap_interval  # noqa: E402

SPACE = "benchmarks.nas_bench_macro_space:NasBenchMacroSpace"
TAUGHT = "benchmarks.nas_bench_macro_space:TaughtMacroSpace"
CENTRES = (0.8e6, 1.2e6, 1.6e6, 2.0e6)
"""Bands of parameters, 5 % to either side."""

PROXIES = (
    "fisher", "fisher_channel", "fisher_log", "taylor", "naswot", "grad_norm", "grad_l2", "snip", "zico", "zen",
    "synflow", "l2_norm", "accuracy", "macs", "params",
    "fisher+macs", "fisher+naswot", "fisher_channel+naswot", "taylor+macs", "taylor+naswot",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A row of the table."""

    choices: tuple[str, ...]
    accuracy: float
    params: int
    macs: int

    @property
    def blocks(self) -> int:
        """How many places hold a block."""
        return sum(name != NAMES[0] for name in self.choices)


Scores = Mapping[str, Sequence[float]]


def main() -> None:
    """Check the costs, score, correlate, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table", type=Path, required=True, metavar="CSV", help="columns arch, mean_acc, params, flops"
    )
    parser.add_argument("--data-root", required=True, metavar="DIR", help="folder of CIFAR-10")
    parser.add_argument("--band", nargs=2, type=figure, metavar=("LOW", "HIGH"), help="parameters, as in 1.14M 1.26M")
    parser.add_argument("--networks", type=int, metavar="N", help="a random N of them; with no --band N of each band")
    parser.add_argument("--proxies", nargs="+", default=PROXIES, metavar="NAME", help="and combinations of them")
    parser.add_argument("--teacher", metavar="FILE", help="weights that a library learns from")
    parser.add_argument("--inits", type=int, default=1, help="draws of the weights (1)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    networks = read(options.table)
    check_costs(networks)
    print(baselines(networks), flush=True)
    chosen = choose(networks, options.band, options.networks)
    settings = ScoreSettings(
        space=SPACE,
        data="cifar10",
        data_root=options.data_root,
        batch_size=options.batch_size,
        inits=options.inits,
        seed=options.seed,
        processes=1,
    )
    singles = list(dict.fromkeys(part for name in options.proxies for part in parts(name)))
    scores, names = measure(settings, chosen, singles, options.out), list(options.proxies)
    if options.teacher:
        scores |= library_scores(options.teacher, options.data_root, chosen, options.out)
        names += choosing.PROXIES
    report(options.out, chosen, scores, names, options.band)


def figure(text: str) -> float:
    """1.26M, 800K or a plain number."""
    units = {"K": 1e3, "M": 1e6}
    return float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)


def read(path: Path) -> list[Network]:
    """The rows of the table. Raises DataError where it lacks a column or a figure."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                Network(
                    tuple(NAMES[int(digit)] for digit in row["arch"]),
                    float(row["mean_acc"]),
                    int(row["params"]),
                    int(row["flops"]),
                )
                for row in csv.DictReader(stream)
            ]
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"'{path}' is no table with arch, mean_acc, params and flops ({error!r}).") from error


def check_costs(networks: Sequence[Network]) -> None:
    """Raise DataError unless the space's costs are the table's, for every row."""
    table = cost_table(SPACE)
    for network in networks:
        indices = table.index(network.choices)
        found = table.total("params", indices), table.total("macs", indices)
        if found != (network.params, network.macs):
            raise DataError(f"{network.choices} costs {found}; the table has {(network.params, network.macs)}.")
    print(f"costs: {len(networks)} of {len(networks)} rows as in the table", flush=True)


def baselines(networks: Sequence[Network]) -> str:
    """Rho with the accuracy of what needs no scoring, over the whole table."""
    accuracy = [network.accuracy for network in networks]
    counts = {
        "params": [network.params for network in networks],
        "macs": [network.macs for network in networks],
        "blocks": [network.blocks for network in networks],
    }
    rho = {name: spearmanr(column, accuracy).statistic for name, column in counts.items()}
    return "whole table: " + ", ".join(f"{name} {value:+.3f}" for name, value in rho.items())


def choose(networks: Sequence[Network], band: Sequence[float] | None, count: int | None) -> list[Network]:
    """A random ``count`` of those within ``band``, or of each band where none is given; a larger count only adds."""
    order = np.random.default_rng(0).permutation(len(networks))
    shuffled = [networks[index] for index in order]
    if band is not None or count is None:
        return (within(shuffled, *band) if band else shuffled)[:count]
    return [network for low, high in bands().values() for network in within(shuffled, low, high)[:count]]


def bands() -> dict[str, tuple[float, float]]:
    """Limits by name."""
    return {f"{centre / 1e6:.1f}M": (0.95 * centre, 1.05 * centre) for centre in CENTRES}


def within(networks: Sequence[Network], low: float, high: float) -> list[Network]:
    """Those whose parameters lie within limits."""
    return [network for network in networks if low <= network.params <= high]


def measure(
    settings: ScoreSettings, networks: Sequence[Network], proxies: Sequence[str], out: Path
) -> dict[str, list[float]]:
    """Scores of all networks by proxy."""
    found = {}
    for name in proxies:
        print(f"{name} ...", flush=True)
        measured = replace(settings, proxy=name)
        found[name] = [one.value for one in score(measured, choices(networks), out / "scores" / name.replace(":", "."))]
    return found


def library_scores(teacher: str, data_root: str, networks: Sequence[Network], out: Path) -> dict[str, list[float]]:
    """Of all networks the sums of a library's errors; it is built, or gone on with, in ``out``."""
    settings = LibrarySettings(
        space=TAUGHT,
        teacher=teacher,
        data="cifar10",
        data_root=data_root,
        data_options={"augment": "crop+flip"},
    )
    library, table = build(settings, out / "library"), cost_table(TAUGHT)
    return {name: choosing.sums(library, name, table, choices(networks)) for name in choosing.PROXIES}


def choices(networks: Sequence[Network]) -> list[dict[str, str]]:
    """Of each network by block."""
    return [dict(zip(cost_table(SPACE).labels, network.choices, strict=True)) for network in networks]


def report(
    out: Path, networks: Sequence[Network], scores: Scores, names: Sequence[str], band: Sequence[float] | None
) -> None:
    """Write the tables."""
    everything = correlate(networks, scores, names)
    header = ("proxy", "rho", "tau", "interval", "networks")
    write_csv(out / "correlations.csv", [header, *((*row, len(networks)) for row in everything)])
    sets = {"of all": everything}
    for title, (low, high) in {} if band else bands().items():
        rows = [index for index, network in enumerate(networks) if low <= network.params <= high]
        if len(rows) > 2:
            inside = {name: [column[index] for index in rows] for name, column in scores.items()}
            sets[f"{title} ({len(rows)})"] = correlate([networks[index] for index in rows], inside, names)
    cells = [["proxy", *sets]]
    for position, (name, *_) in enumerate(everything):
        found = (rows[position] for rows in sets.values())
        cells.append([name, *(f"{rho:+.3f} ({interval}), tau {tau:+.3f}" for _, rho, tau, interval in found)])
    write_text(out / "correlations.md", f"{len(networks)} networks, torch {torch.__version__}\n\n{markdown(cells)}\n")
    print((out / "correlations.md").read_text())


def correlate(networks: Sequence[Network], scores: Scores, names: Sequence[str]) -> list[tuple[str, float, float, str]]:
    """(proxy, rho, tau, interval of rho) for each name, and for the number of blocks."""
    accuracy = np.array([network.accuracy for network in networks])
    rows = []
    for name in [*names, "blocks"]:
        if name == "blocks":
            values = [float(network.blocks) for network in networks]
        elif name in choosing.PROXIES:
            values = [-error for error in scores[name]]
        else:
            sign = 1 if is_high_good(name) else -1
            values = [sign * value for value in scores_of(name, scores)]
        column = np.nan_to_num(np.array(values), nan=-np.inf)  # no finite score: the worst
        low, high = bootstrap_interval(column, accuracy)
        rho, tau = spearmanr(column, accuracy).statistic, kendalltau(column, accuracy).statistic
        rows.append((name, round(float(rho), 4), round(float(tau), 4), f"{low:+.3f} to {high:+.3f}"))
    return rows


if __name__ == "__main__":
    main()

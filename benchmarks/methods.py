"""What each method finds for its effort: best Fisher potential against evaluations and processor seconds.

A search by each method with each number of samples, budget and seed; what it thinks best is scored anew with weights
and minibatches that no search saw (five draws). An evaluation is one architecture under one draw of the weights;
`halving` has five draws to spend, the others one. The first hundred of a thousand uniform samples are a hundred uniform
samples, so that only the longest search of that method is run, and the shorter ones read its scores. The picture has
what each search would have found had it been stopped before its end. Every search keeps its scores and its result below
--out: the same command goes on where it was. Writes benchmarks/results/methods.md and methods.png, or methods_small.

    python benchmarks/methods.py --out results/methods --small           # WRN-16-1 on digits: minutes
    python benchmarks/methods.py --out results/methods --data-root data  # WRN-40-2 on CIFAR-10: a day
"""

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor  # noqa: E402
from nni_blockswap.cost.table import Indices  # noqa: E402
from nni_blockswap.files import read_json, write_json, write_text  # noqa: E402
from nni_blockswap.methods import METHODS  # noqa: E402
from nni_blockswap.results.tables import markdown, write_figure  # noqa: E402
from nni_blockswap.searching import SearchSettings, make_method, score, search, table_of  # noqa: E402

UNSEEN_SEED, UNSEEN_DRAWS, HALVING_DRAWS = 1_000_000, 5, 5
SPACE = "search_spaces.wide_resnet:WideResNetSpace"
SMALL: dict[str, Any] = {
    "space_args": {"depth": 16, "width": 1, "in_channels": 1, "image_size": 16},
    "data": "digits", "batch_size": 32, "budgets": ["25%"], "samples": [40, 80], "most": 160, "seeds": 3,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "space_args": {}, "data": "cifar10", "batch_size": 128,
    "budgets": ["200K", "400K", "800K"], "samples": [200], "most": 1000, "seeds": 5,
}  # fmt: skip
"""``samples`` of all methods, in the order in which they are run; ``most`` of the uniform one, the reference."""

Found = dict[tuple[str, str, int], list[dict[str, Any]]]
"""Results of all seeds, by budget, method and samples."""

Curves = dict[tuple[str, str, int], list[list[tuple[int, float]]]]
"""For each seed (evaluations, unseen score of the best so far)."""


def main() -> None:
    """Run what is missing, and write what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--data-root")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    case = SMALL if options.small else LARGE
    base = {
        "space": SPACE, "space_args": case["space_args"], "data": case["data"], "data_root": options.data_root,
        "batch_size": case["batch_size"], "device": "cpu", "processes": 1,
    }  # fmt: skip
    found: Found = {}
    searches: list[tuple[tuple[str, str, int], SearchSettings, Path]] = []
    for method, samples, seed, budget in plan(case, options.methods, options.seeds or case["seeds"]):
        settings = SearchSettings(
            **base, method=method, budgets=[budget], at_most=True, samples=samples, seed=seed,
            inits=HALVING_DRAWS if method == "halving" else 1,
        )  # fmt: skip
        place = options.out / f"{budget} {method} {samples} {seed}"
        if not (place / "result.json").exists():
            longest = options.out / f"{budget} {method} {case['most']} {seed}"
            shorter = method == "uniform" and samples < case["most"]
            result = prefix(settings, case["most"], longest) if shorter else run(settings, place)
            write_json(place / "result.json", result)
        found.setdefault((budget, method, samples), []).append(read_json(place / "result.json"))
        if (place / "scores.jsonl").exists():  # of a search of its own
            searches.append(((budget, method, samples), settings, place))
        report(found, case, options.small)
    draw(found, curves_of(searches), kept(options.small).with_suffix(".png"))


def plan(case: dict[str, Any], methods: Sequence[str], seeds: int) -> Iterator[tuple[str, int, int, str]]:
    """(method, samples, seed, budget): first all that one number of samples needs, so that it may be stopped early."""
    for samples in case["samples"]:
        for seed, budget in itertools.product(range(seeds), case["budgets"]):
            for method in methods:
                if method == "uniform" and samples == case["samples"][0]:
                    yield method, case["most"], seed, budget
                yield method, samples, seed, budget


def run(settings: SearchSettings, place: Path) -> dict[str, Any]:
    """One search, and what its winner scores where no method looked.

    Processor seconds are those of this process; a search that was interrupted in between has none.
    """
    fresh, start = not (place / "scores.jsonl").exists(), time.process_time()
    best = search(settings, place)[0].best
    seconds = time.process_time() - start if fresh else None
    evaluations = len((place / "scores.jsonl").read_text().splitlines())
    return {"evaluations": evaluations, "seconds": seconds, "unseen": unseen(settings, best.choices, place)}


def prefix(settings: SearchSettings, most: int, place: Path) -> dict[str, Any]:
    """What the search of ``most`` uniform samples below ``place`` would have found with its first ones."""
    longest, table = read_json(place / "result.json"), table_of(settings)
    request = make_method(replace(settings, samples=most), table, settings.parsed()[0]).ask()
    assert request is not None
    first = [table.names(row) for row in request.rows[: settings.samples]]
    scores = [one.value for one in score(settings, first, place)]
    best = first[scores.index(max(scores))]
    share = len(first) / longest["evaluations"]
    return {
        "evaluations": len(first),
        "seconds": longest["seconds"] and longest["seconds"] * share,
        "unseen": unseen(settings, best, place),
    }


def unseen(settings: SearchSettings, choices: Mapping[str, str], place: Path) -> float:
    """Mean score under draws of the weights, and on a minibatch, of its own."""
    return all_unseen(settings, [choices], place)[0]


def all_unseen(settings: SearchSettings, choices: Sequence[Mapping[str, str]], place: Path) -> list[float]:
    """The same of many, in one go."""
    other = replace(settings, seed=UNSEEN_SEED, inits=UNSEEN_DRAWS)
    return [one.value for one in score(other, choices, place.parent / "unseen")]


def curves_of(searches: Sequence[tuple[tuple[str, str, int], SearchSettings, Path]]) -> Curves:
    """What each search would have found, by budget, method and samples: (evaluations, unseen score of its best)."""
    led = [leaders(settings, place) for _, settings, place in searches]
    distinct = {" ".join(names.values()): names for line in led for _, names in line}
    _, settings, place = searches[0]
    scores = dict(zip(distinct, all_unseen(settings, list(distinct.values()), place), strict=True))
    found: Curves = {}
    for (key, _, _), line in zip(searches, led, strict=True):
        found.setdefault(key, []).append([(count, scores[" ".join(names.values())]) for count, names in line])
    return found


def leaders(settings: SearchSettings, place: Path) -> list[tuple[int, dict[str, str]]]:
    """(evaluations, best so far) wherever a search's best changed, and at its end, from the scores it kept.

    The best is the one of the highest mean score among those under the most draws of the weights. The method is asked
    again and told what it was told; uniform samples count in the order in which they were drawn.
    """
    table = table_of(settings)
    method = make_method(settings, table, settings.parsed()[0])
    lines = [json.loads(line) for line in (place / "scores.jsonl").read_text().splitlines()]
    scores = {(one["init"], one["choices"]): one["score"] for one in lines}
    known: dict[Indices, tuple[int, float]] = {}
    evaluations, best, found = 0, None, []
    while (request := method.ask()) is not None:
        inits = request.inits or settings.inits
        for rows in ([row] for row in request.rows) if settings.method == "uniform" else [request.rows]:
            for row in rows:
                evaluations += inits - known.get(row, (0, 0.0))[0]
                text = " ".join(table.names(row).values())
                known[row] = inits, mean(scores[init, text] for init in range(inits))
            leader = max(known, key=lambda row: known[row])
            if leader != best:
                best = leader
                found.append((evaluations, table.names(leader)))
        method.tell({row: known[row][1] for row in request.rows})
    return [*found, (evaluations, found[-1][1])]


def kept(small: bool) -> Path:
    """Where the results are, but for their suffixes."""
    return ROOT / "benchmarks/results" / ("methods_small" if small else "methods")


def report(found: Found, case: dict[str, Any], small: bool) -> None:
    """Table of what there is so far; scores as a share of the best of the uniform method."""
    rows: list[tuple[object, ...]] = [
        ("budget", "method", "samples", "seeds", "evaluations", "processor s", "unseen score", "spread", "of uniform's")
    ]
    most = case["most"]
    for (budget, method, samples), results in sorted(found.items(), key=lambda item: (item[0][0], item[0][2])):
        scores = [one["unseen"] for one in results]
        timed = [one["seconds"] for one in results if one["seconds"] is not None]
        reference = [one["unseen"] for one in found.get((budget, "uniform", most), [])]
        rows.append((
            budget, method, samples, len(results), f"{mean(one['evaluations'] for one in results):.0f}",
            f"{mean(timed):.1f}" if timed else "", f"{mean(scores):.4g}",
            f"{stdev(scores):.2g}" if len(scores) > 1 else "",
            f"{mean(scores) / mean(reference):.2f}" if reference else "",
        ))  # fmt: skip
    name = "WRN-16-1 on digits" if small else "WRN-40-2 on CIFAR-10"
    seeds, case_option = max(len(results) for results in found.values()), "--small" if small else "--data-root data"
    command = f"python benchmarks/methods.py --out results/methods {case_option} --seeds {seeds}"
    text = (
        f"# Methods: best Fisher potential for the effort\n\n{name}, {processor()}, one thread. `{command}`\n\n"
        "Budgets are caps (`--at-most`). The winner of each search, scored anew under five draws of the weights and on "
        "a minibatch that no search saw; "
        f"the last column is its share of what the uniform method finds with {most} samples.\n\n"
        f"{markdown(rows)}\n"
    )
    write_text(kept(small).with_suffix(".md"), text)


def draw(found: Found, curves: Curves, path: Path) -> None:
    """A panel a budget, a line a search: unseen score of the best so far against processor time, with its spread."""
    from matplotlib.figure import Figure

    budgets = list(dict.fromkeys(budget for budget, _, _ in curves))
    figure = Figure(figsize=(5 * len(budgets), 4), layout="constrained")
    for axes, budget in zip(figure.subplots(1, len(budgets), squeeze=False)[0], budgets, strict=True):
        for (_, method, samples), lines in (one for one in sorted(curves.items()) if one[0][0] == budget):
            results = found[budget, method, samples]
            seconds = [one["seconds"] / one["evaluations"] for one in results if one["seconds"] is not None]
            first = max(line[0][0] for line in lines)
            counts = sorted({count for line in lines for count, _ in line if count >= first})
            scores = np.array([[reached(line, count) for count in counts] for line in lines])
            x = np.array(counts) * (mean(seconds) if seconds else math.nan)
            middle, spread = scores.mean(0), scores.std(0, ddof=1) if len(lines) > 1 else np.zeros(len(counts))
            (drawn,) = axes.step(x, middle, where="post", label=f"{method}, {samples} samples")
            axes.fill_between(x, middle - spread, middle + spread, step="post", alpha=0.2, color=drawn.get_color())
        axes.set_title(budget)
        axes.set_xlabel("processor seconds")
        axes.set_xscale("log")
    figure.axes[0].set_ylabel("Fisher potential, unseen draws")
    figure.axes[0].legend(fontsize=8)
    write_figure(path, figure)


def reached(line: Sequence[tuple[int, float]], count: int) -> float:
    """What a curve has after so many evaluations."""
    return [score for evaluations, score in line if evaluations <= count][-1]


if __name__ == "__main__":
    main()

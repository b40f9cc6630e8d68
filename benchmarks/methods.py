"""What each method finds for its effort: best Fisher potential against evaluations and processor seconds.

A search by each method with each number of samples, budget and seed; what it thinks best is scored anew with weights
and minibatches that no search saw (five draws). An evaluation is one architecture under one draw of the weights;
`halving` has five draws to spend, the others one. The first hundred of a thousand uniform samples are a hundred uniform
samples, so that only the longest search of that method is run, and the shorter ones read its scores. Every search keeps
its scores and its result below --out: the same command goes on where it was. Writes benchmarks/results/methods.md and
methods.png, or methods_small.

    python benchmarks/methods.py --out results/methods --small           # WRN-16-1 on digits: minutes
    python benchmarks/methods.py --out results/methods --data-root data  # WRN-40-2 on CIFAR-10: a day
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import processor  # noqa: E402
from nni_blockswap.files import read_json, write_json, write_text  # noqa: E402
from nni_blockswap.methods import METHODS  # noqa: E402
from nni_blockswap.results.tables import markdown, write_png  # noqa: E402
from nni_blockswap.searching import SearchSettings, make_method, score, search, table_of  # noqa: E402

UNSEEN_SEED, UNSEEN_DRAWS, HALVING_DRAWS = 1_000_000, 5, 5
SPACE = "search_spaces.wide_resnet:WideResNetSpace"
SMALL: dict[str, Any] = {
    "space_args": {"depth": 16, "width": 1, "in_channels": 1, "image_size": 16},
    "data": "digits", "batch_size": 32, "budgets": ["25%"], "samples": [40, 80], "most": 160, "seeds": 3,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "space_args": {}, "data": "cifar10", "batch_size": 128,
    "budgets": ["200K", "400K", "800K"], "samples": [200, 100, 500], "most": 1000, "seeds": 5,
}  # fmt: skip
"""``samples`` of all methods, in the order in which they are run; ``most`` of the uniform one, the reference."""


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
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
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
        report(found, case, options.small)


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
    other = replace(settings, seed=UNSEEN_SEED, inits=UNSEEN_DRAWS)
    return score(other, [choices], place.parent / "unseen")[0].value


def report(found: dict[tuple[str, str, int], list[dict[str, Any]]], case: dict[str, Any], small: bool) -> None:
    """Table and picture of what there is so far; scores as a share of the best of the uniform method."""
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
    kept = ROOT / "benchmarks/results" / ("methods_small" if small else "methods")
    write_text(kept.with_suffix(".md"), text)
    draw(found, kept.with_suffix(".png"))


def draw(found: dict[tuple[str, str, int], list[dict[str, Any]]], path: Path) -> None:
    """A panel a budget, a line a method: unseen score against processor time, with its spread over the seeds."""
    from matplotlib.figure import Figure

    budgets = list(dict.fromkeys(budget for budget, _, _ in found))
    figure = Figure(figsize=(5 * len(budgets), 4), layout="constrained")
    for axes, budget in zip(figure.subplots(1, len(budgets), squeeze=False)[0], budgets, strict=True):
        for method in dict.fromkeys(method for _, method, _ in found):
            points = [results for (b, m, _), results in sorted(found.items()) if (b, m) == (budget, method)]
            x = [mean(one["seconds"] or math.nan for one in results) for results in points]
            y = [[one["unseen"] for one in results] for results in points]
            spread = [stdev(one) if len(one) > 1 else 0.0 for one in y]
            axes.errorbar(x, list(map(mean, y)), spread, marker="o", capsize=3, label=method)
        axes.set_title(budget)
        axes.set_xlabel("processor seconds")
    figure.axes[0].set_ylabel("Fisher potential, unseen draws")
    figure.axes[0].legend()
    write_png(path, figure)


if __name__ == "__main__":
    main()

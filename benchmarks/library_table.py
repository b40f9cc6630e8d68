"""The table of benchmarks/library.py."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean


@dataclass(frozen=True)
class Result:
    """One training: what was trained, from what, and how."""

    budget: str
    choice: str
    start: str
    epochs: int
    rate: float
    seed: int


Pair = tuple[str, str]
"""Budget and choice."""


def table(
    errors: Mapping[Result, float],
    begun: Mapping[Pair, Mapping[str, float]],
    milliseconds: Mapping[str, Mapping[str, float]],
) -> str:
    """Errors in percent in Markdown, a row a budget and choice, a column a start and number of epochs.

    Args:
        errors: of all trainings; of several rates the better mean shows, with its rate where there are two.
        begun: "error" of warm students as they begin, and their shares of the teacher's "params" and "macs".
        milliseconds: by "budget/choice" and images at once, or none.
    """
    kinds = sorted({(one.epochs, one.start != "warm", one.start) for one in errors})
    columns = [f"{start}, {epochs}" for epochs, _, start in kinds]
    timed = sorted(milliseconds.get("teacher", {}), key=int)
    head = ["budget", "choice", "parameters", "MACs", *(f"ms, batch {batch}" for batch in timed), "0", *columns]
    lines = [head, ["---"] * len(head)]
    if timed:
        teacher = [f"{milliseconds['teacher'][batch]:.2f}" for batch in timed]
        lines.append(["", "teacher", "100 %", "100 %", *teacher, *[""] * (1 + len(columns))])
    for pair in dict.fromkeys((one.budget, one.choice) for one in errors):
        budget, choice = pair
        taken = [f"{100 * begun[pair][name]:.1f} %" for name in ("params", "macs")]
        times = milliseconds.get(f"{budget}/{choice}", {})
        cells = [_cell(errors, pair, start, epochs) for epochs, _, start in kinds]
        timing = [f"{times[batch]:.2f}" if batch in times else "" for batch in timed]
        lines.append([budget, choice, *taken, *timing, f"{begun[pair]['error']:.1f}", *cells])
    told = (
        "Error on the validation set in %, after so many epochs; several seeds: mean and half of their range. 0: as it "
        "is put together, not trained. In parentheses: the rate that was better, where two were tried.\n\n"
    )
    return told + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(errors: Mapping[Result, float], pair: Pair, start: str, epochs: int) -> str:
    by_rate: dict[float, list[float]] = defaultdict(list)
    for one, error in errors.items():
        if (one.budget, one.choice, one.start, one.epochs) == (*pair, start, epochs):
            by_rate[one.rate].append(error)
    if not by_rate:
        return ""
    rate, found = min(by_rate.items(), key=lambda item: mean(item[1]))
    spread = f" +- {(max(found) - min(found)) / 2:.1f}" if len(found) > 1 else ""
    return f"{mean(found):.1f}{spread}" + (f" ({rate:g})" if len(by_rate) > 1 else "")

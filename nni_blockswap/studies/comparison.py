"""BlockSwap beside its alternatives (section 5): which networks an experiment trains, by which method, how often.

At each budget: the best by Fisher potential or by another proxy, the best of fewer samples (section 4.3), the front's,
random architectures, and the original pruned to as many non-zero parameters. At no budget of their own: one substitute
in every block, or in one block at a time (appendix B), narrower or shallower originals, and networks of other kinds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nni_blockswap.architecture import Architecture
from nni_blockswap.conversation import OnProgress, unheard
from nni_blockswap.cost.budget import Budget
from nni_blockswap.errors import BlockSwapError, ConfigError, SpaceError, shown
from nni_blockswap.library.choosing import PROXIES
from nni_blockswap.methods.base import Problem
from nni_blockswap.methods.sampler import Sampler
from nni_blockswap.methods.uniform import draw
from nni_blockswap.ranges import check_count
from nni_blockswap.results.ranking import Ranking
from nni_blockswap.scoring.proxies import PAPER
from nni_blockswap.searching import SearchSettings, search, table_of
from nni_blockswap.spaces import complete_args, cost_table
from nni_blockswap.studies.front import front, spaced
from nni_blockswap.studies.sensitivity import one_swap
from nni_blockswap.studies.trials import BLOCKSWAP, REDUCED

FRONT, RANDOM = "front", "random"
BEST_OF, SINGLE, ONE_SWAP = "best of", "single", "one swap"
PRUNED = ("l1-pruning", "snip")
METHODS = (BLOCKSWAP, *PAPER[1:], FRONT, RANDOM, *PRUNED)
"""Methods that meet a budget; those between the first and ``front`` take the best by another metric of the paper."""

KINDS: Mapping[str, type] = {"single": str, "one_swap": str, "reduced": Mapping, "others": Mapping}
"""Of the entries of a comparison's lists."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        methods: of ``METHODS``, or of ``library.choosing.PROXIES``: the best by the errors of the search's library.
            ``front`` is the best by the search's own proxy of all that was scored for any of the budgets.
        budgets: at which they are compared; empty: at the search's own. A range, ``10%..60%``, is ``points`` of them.
        points: budgets of a range.
        random: architectures of the method ``random`` at each budget; every seed has others.
        best_of: numbers of samples; of the search's, in the order of their draw, the best of the first so many. The
            search has to be of the method ``uniform``.
        single: substitutes, each to be tried in every block at once.
        one_swap: substitutes, each to be tried in one block at a time, the others as in the original.
        reduced: arguments of the space, each a narrower or shallower original.
        others: originals of other spaces: a mapping with ``method``, what it is called, ``space``, its ``space_args``,
            and ``recipe``, what its recipe has otherwise. A teacher that it needs is a trained network of its own kind,
            which makes it a born-again one (Furlanello et al., ICML 2018).
        seeds: trainings of each; each has a teacher of its own.
    """

    methods: Sequence[str] = (BLOCKSWAP, RANDOM)
    budgets: Sequence[str] = ()
    points: int = 12
    random: int = 1
    best_of: Sequence[int] = ()
    single: Sequence[str] = ()
    one_swap: Sequence[str] = ()
    reduced: Sequence[Mapping[str, Any]] = ()
    others: Sequence[Mapping[str, Any]] = ()
    seeds: int = 3

    def __post_init__(self) -> None:
        for name in ("seeds", "random"):
            check_count(name, getattr(self, name))
        for name in ("methods", "budgets", "best_of", "single", "one_swap", "reduced", "others"):
            if isinstance(getattr(self, name), str | Mapping) or not isinstance(getattr(self, name), Sequence):
                raise ConfigError(f"a comparison's {name} are a list, not {getattr(self, name)!r}.")
        for count in self.best_of:
            check_count("best_of", count)
        for name, kind in KINDS.items():
            for entry in getattr(self, name):
                if not isinstance(entry, kind):
                    wanted = "text" if kind is str else "a mapping, as in {depth: 16}"
                    raise ConfigError(f"each of a comparison's {name} is {wanted}, not {shown(entry)}.")
        known = (*METHODS, *PROXIES)
        unknown = [name for name in self.methods if name not in known]
        if unknown:
            raise ConfigError(f"there is no method '{unknown[0]}'; choose from {', '.join(known)}.")

    def size(self, blocks: int) -> int:
        """How many trials it has, in a space of so many blocks."""
        searched = len(self.best_of) + sum(self.random if method == RANDOM else 1 for method in self.methods)
        alone = len(self.single) + blocks * len(self.one_swap) + len(self.reduced) + len(self.others)
        return self.seeds * (searched * max(1, len(self.budgets)) + alone)

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> "Comparison":
        """A comparison from a config. Raises ConfigError for an argument that there is not."""
        for name in sorted(map(str, arguments.keys() - cls.__dataclass_fields__.keys())):
            raise ConfigError(f"a comparison has no '{name}'; it has {', '.join(cls.__dataclass_fields__)}.")
        budgets, points = arguments.get("budgets", ()), arguments.get("points", cls.points)
        check_count("points", points)
        if isinstance(budgets, str):
            budgets = spaced(budgets, points)
        return cls(**{**arguments, "budgets": budgets})


def contestants(
    comparison: Comparison,
    settings: SearchSettings,
    out: str | Path,
    on_progress: OnProgress = unheard,
) -> list[dict[str, Any]]:
    """Parameters of the trials: all of the first seed, then all of the next, so that every method is seen early.

    Beside what a student's trial is given they hold ``method``, ``variant`` (its budget, substitute or arguments),
    ``seed``; for a pruned network ``nonzero``, how many parameters it keeps; for one of another kind its ``recipe``.

    Args:
        settings: of the searches; each method's scores are kept in a folder of ``out``.

    Raises:
        BlockSwapError: a search cannot be made, a substitute does not fit every block, or a budget to prune to is not
            one of parameters.
    """
    for error in faults(comparison, settings):  # before any search: those take long
        raise error
    settings = _at_its_budgets(comparison, settings)
    compared = list(_compared(comparison, settings, Path(out), on_progress))
    return [
        {**parameters, "method": method, "variant": variant, "seed": seed}
        for seed in range(comparison.seeds)
        for method, variant, trained in compared
        for parameters in trained[seed % len(trained)]
    ]


def faults(comparison: Comparison, settings: SearchSettings) -> list[BlockSwapError]:
    """Every budget that cannot be met, substitute that does not fit, and original that cannot be."""
    settings = _at_its_budgets(comparison, settings)
    attempts: list[Callable[[], object]] = [
        *(partial(_everywhere, substitute, settings) for substitute in comparison.single),
        *(partial(one_swap, settings, substitute) for substitute in comparison.one_swap),
        *(partial(_original, settings, arguments) for arguments in comparison.reduced),
        *(partial(_other, entry) for entry in comparison.others),
    ]
    if settings.library is None:
        attempts += [partial(_by_library, name) for name in comparison.methods if name in PROXIES]
    if settings.samples < max(comparison.best_of, default=0):
        attempts.append(partial(_too_few, settings.samples, max(comparison.best_of)))
    if comparison.best_of and settings.method != "uniform":
        attempts.append(partial(_not_drawn, settings.method))
    for text in settings.budgets:
        if set(comparison.methods) - {*PRUNED, *PROXIES, FRONT} or comparison.best_of:
            attempts.append(partial(_reached, text, _sampled(settings)))
        elif set(comparison.methods) - set(PRUNED):
            attempts.append(partial(_reached, text, settings))
        if set(comparison.methods) & set(PRUNED):
            attempts.append(partial(_count, text, settings))
    found = []
    for attempt in attempts:
        try:
            attempt()
        except BlockSwapError as error:
            found.append(error)
    return found


def _reached(text: str | Budget, settings: SearchSettings) -> None:
    alone = replace(settings, budgets=[text])
    Sampler(table_of(alone), *alone.parsed())


def _at_its_budgets(comparison: Comparison, settings: SearchSettings) -> SearchSettings:
    return replace(settings, budgets=[str(budget) for budget in comparison.budgets] or settings.budgets)


def _sampled(settings: SearchSettings) -> SearchSettings:
    """Those of the search by Fisher potential: what is drawn at random is from its draw, and not a library's."""
    return replace(settings, proxy="fisher", library=None)


Compared = tuple[str, str, Sequence[Sequence[dict[str, Any]]]]
"""Method, variant, and for each seed, in turn, the parameters of its trials."""


def _compared(
    comparison: Comparison, settings: SearchSettings, out: Path, on_progress: OnProgress
) -> Iterator[Compared]:
    for method in comparison.methods:
        if method == RANDOM:
            yield from _random(_sampled(settings), comparison.seeds, comparison.random)
        elif method in PRUNED:
            original = _original(settings, {})
            for text in settings.budgets:
                kept = _count(text, settings)
                yield method, str(text), [[{**original.to_parameters(), "params": kept, "nonzero": kept}]]
        elif method == FRONT:
            for text, best in front(settings, out / FRONT, on_progress).chosen.items():
                yield method, text, [[best.to_parameters(1)]]
        else:
            proxy = "fisher" if method == BLOCKSWAP else method
            for text, ranking in _rankings(proxy, settings, out, on_progress):
                yield method, text, [[ranking.best.to_parameters(1)]]
    if comparison.best_of:
        yield from _best_of(comparison.best_of, _sampled(settings), _rankings("fisher", settings, out, on_progress))
    yield from _without_budget(comparison, settings)


def _without_budget(comparison: Comparison, settings: SearchSettings) -> Iterator[Compared]:
    for substitute in comparison.single:
        yield SINGLE, substitute, [[_everywhere(substitute, settings).to_parameters()]]
    for substitute in comparison.one_swap:
        for label, one in one_swap(settings, substitute).items():
            yield ONE_SWAP, f"{label} {substitute}", [[one.to_parameters()]]
    for arguments in comparison.reduced:
        variant = " ".join(f"{name}={value}" for name, value in arguments.items())
        yield REDUCED, variant, [[_original(settings, arguments).to_parameters()]]
    for entry in comparison.others:
        yield entry["method"], "", [[{**_other(entry).to_parameters(), "recipe": dict(entry["recipe"])}]]


def _rankings(
    proxy: str, settings: SearchSettings, out: Path, on_progress: OnProgress
) -> Iterator[tuple[str, Ranking]]:
    library = settings.library if proxy in PROXIES else None
    rankings = search(replace(settings, proxy=proxy, library=library), out / proxy, on_progress)
    return zip(map(str, settings.budgets), rankings, strict=True)


def _best_of(
    counts: Sequence[int], settings: SearchSettings, rankings: Iterable[tuple[str, Ranking]]
) -> Iterator[Compared]:
    """The best of the first so many samples, from one ranking of all."""
    table = table_of(settings)
    for (text, ranking), budget in zip(rankings, settings.parsed(), strict=True):
        drawn = draw(Problem(table, budget, settings.samples, settings.seed))
        for count in counts:
            first = [table.names(indices) for indices in drawn[:count]]
            best = next(one for one in ranking.architectures if one.choices in first)
            yield f"{BEST_OF} {count}", text, [[best.to_parameters()]]


def _random(settings: SearchSettings, seeds: int, count: int) -> Iterator[Compared]:
    """Architectures from another draw than the searches', ``count`` for each seed."""
    table, arguments = table_of(settings), complete_args(settings.space, settings.space_args)
    for text, budget in zip(settings.budgets, settings.parsed(), strict=True):
        drawn = draw(Problem(table, budget, seeds * count, settings.seed + 1))
        found = (Architecture.from_indices(settings.space, arguments, table, indices) for indices in drawn)
        given = [one.to_parameters() for one in found]
        yield RANDOM, str(text), [given[start : start + count] for start in range(0, len(given), count)]


def _everywhere(substitute: str, settings: SearchSettings) -> Architecture:
    """One substitute in every block; one that the space offers on request alone, too."""
    arguments = complete_args(settings.space, settings.space_args)
    choices = [substitute] * len(cost_table(settings.space, settings.space_args).labels)
    try:
        return Architecture.from_choices(settings.space, choices, arguments)
    except SpaceError:
        if "extra" not in arguments:
            raise
        return Architecture.from_choices(
            settings.space, choices, {**arguments, "extra": [*arguments["extra"], substitute]}
        )


def _other(entry: Mapping[str, Any]) -> Architecture:
    """The original of another space. Raises ConfigError where ``entry`` does not say which."""
    if not {"method", "space", "recipe"} <= entry.keys() <= {"method", "space", "space_args", "recipe"}:
        raise ConfigError(
            f"one of others has method, space, recipe and maybe space_args, not {', '.join(map(str, entry))}."
        )
    for name, kind in {"method": str, "space": str, "space_args": Mapping, "recipe": Mapping}.items():
        if not isinstance(entry.get(name, {}), kind):
            wanted = "text" if kind is str else "a mapping"
            raise ConfigError(f"{name} of one of others is {wanted}, not {shown(entry[name])}.")
    return Architecture.original(entry["space"], entry.get("space_args"))


def _by_library(method: str) -> None:
    raise ConfigError(f"the method '{method}' takes a library; name one, with proxy: library.")


def _too_few(samples: int, count: int) -> None:
    raise ConfigError(f"the best of {count} samples is asked for, and samples is {samples}; raise it to {count}.")


def _not_drawn(method: str) -> None:
    raise ConfigError(f"best_of takes the first of a uniform draw, and method is {method}; set it to uniform.")


def _original(settings: SearchSettings, changed: Mapping[str, Any]) -> Architecture:
    """The original of the space, some of its arguments ``changed``."""
    return Architecture.original(settings.space, {**settings.space_args, **changed})


def _count(text: str | Budget, settings: SearchSettings) -> int:
    """How many parameters a budget means. Raises ConfigError where it limits none."""
    bounds = Budget.parse(text).bounds(cost_table(settings.space, settings.space_args))
    if "params" not in bounds:
        raise ConfigError(f"pruning counts parameters, and the budget {text} limits none; give one as in 400K.")
    return bounds["params"][1]

"""A search, and a library, of a network and data that a program holds: settings from live objects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from nni_blockswap import searching
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.conversation import OnProgress, Progress, unheard
from nni_blockswap.cost.budget import Budget
from nni_blockswap.errors import ConfigError
from nni_blockswap.library import building, school
from nni_blockswap.library.library import Library
from nni_blockswap.library.settings import LibrarySettings
from nni_blockswap.results.ranking import Ranking
from nni_blockswap.searching import SearchSettings
from nni_blockswap.spaces import named_arguments
from nni_blockswap.tasks import TASKS, Task
from nni_blockswap.tasks.data_module import is_data_module, loaders_of
from nni_blockswap.tasks.loader import LoaderTask, Loss, LossTask

OWN_DATA = LoaderTask.name
"""What the data that is handed over is called."""


def search(what: Any, data: Any = None, on_progress: OnProgress | None = None, **given: Any) -> Any:
    """A search, in one of two forms.

    ``search(settings, out, on_progress)`` takes ``SearchSettings`` and gives a list of rankings; see
    ``searching.search``.

    ``search(space, loader, budget="30%", samples=500, seed=0, out=None, **settings)`` takes a space, such as
    ``swap_blocks`` makes of a network, and one's own batches. It gives a ``Ranking``, or where ``budget`` is a list a
    list of them; see ``search_own``.
    """
    if not isinstance(what, SearchSettings):
        return search_own(what, data, on_progress=on_progress, **given)
    return searching.search(what, given.pop("out", data), on_progress or unheard, **given)


def search_own(
    space: BlockSpace,
    loader: Any,
    *,
    budget: str | int | Budget | Sequence[str | int | Budget],
    samples: int = 1000,
    seed: int = 0,
    out: str | Path | None = None,
    loss: Loss | None = None,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Ranking | list[Ranking]:
    """Search a space for architectures within a budget, and rank them by what they score on ``loader``'s images.

    Args:
        space: what ``swap_blocks`` made, or any other space.
        loader: batches (images, labels), see ``tasks.loader``; a LightningDataModule; or a task, such as a detector's.
        budget: as ``Budget.parse`` reads it, or a ``Budget``; a list of them gives a list of rankings.
        samples: architectures to score at each budget.
        seed: of samples, weights and minibatch.
        out: folder that keeps the scores as they come, so that a search that was stopped goes on.
        loss: of outputs and labels; None is cross-entropy.
        on_progress: is told after each score; None draws a bar.
        settings: further fields of ``SearchSettings``: ``batch_size``, ``inits``, ``proxy``, ``method``, ...

    Raises:
        BlockSwapError: something given does not fit.
    """
    named = _named("a search", space, settings, SearchSettings)
    _register(_task(loader, loss))
    several = isinstance(budget, Sequence) and not isinstance(budget, str)
    given: Sequence[str | int | Budget] = budget if several else [budget]  # type: ignore[assignment, list-item]
    budgets = [one if isinstance(one, Budget) else str(one) for one in given]
    asked = SearchSettings(
        **named,
        budgets=budgets,
        samples=samples,
        seed=seed,
        **settings,
    )
    if on_progress is not None or asked.library is not None:  # which takes no time
        rankings = searching.search(asked, out, on_progress or unheard)
    else:
        with _SearchBar() as bar:
            rankings = searching.search(asked, out, bar)
    return rankings if several else rankings[0]


def build_library(
    space: BlockSpace,
    loader: Any,
    *,
    out: str | Path,
    on_progress: Callable[[school.Progress], None] | None = None,
    **settings: Any,
) -> Library:
    """Teach every candidate of every block to do what the network's own block does, on ``loader``'s images.

    Labels are not looked at. What was learned is in ``out`` as it comes: the same call goes on where it was stopped,
    and with more ``steps`` teaches on. Then ``search(..., proxy="library", library=out)`` finds the best architecture
    within a budget exactly, and ``distill(..., init=f"library={out}")`` starts a student from what its blocks learned.

    Args:
        space: what ``swap_blocks`` made of a trained network; ``extra`` offers further candidates there, such as W(r).
        loader: as for ``search_own``.
        out: folder of the library.
        on_progress: is told after each step; None draws a bar.
        settings: further fields of ``LibrarySettings``: ``steps``, ``batch_size``, ``held_out``, ``device``, ...; of a
            space that is no user's own network, ``teacher``.

    Raises:
        BlockSwapError: something given does not fit; another library in ``out``.
    """
    named = _named("a library", space, settings, LibrarySettings)
    _register(_task(loader, None))
    asked = LibrarySettings(**named, **settings)
    if on_progress is not None:
        return building.build(asked, out, on_progress)
    with _Bar() as bar:
        return building.build(asked, out, bar)


def _named(what: str, space: Any, settings: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """A space and the user's own data as fields of ``kind``, once ``settings`` are known to be others of them."""
    if not isinstance(space, BlockSpace):
        raise ConfigError(f"{what} takes a space, as swap_blocks makes one, not a {type(space).__name__}.")
    known = {one.name for one in fields(kind)} - {"space", "space_args", "data", "budgets"}
    if unknown := settings.keys() - known:
        raise ConfigError(f"{what} has no setting '{min(unknown)}'; it has {', '.join(sorted(known))}.")
    own: Any = type(space)
    arguments = named_arguments(own, *space.trace_args, **space.trace_kwargs)
    return {"space": f"{own.__module__}:{own.__qualname__}", "space_args": arguments, "data": OWN_DATA}


def _register(task: Task) -> None:
    """Let the user's own data be known by ``OWN_DATA``."""

    def given(root: str | None) -> Task:
        return task

    TASKS.register(OWN_DATA, given)


def _task(loader: Any, loss: Loss | None) -> Task:
    if hasattr(loader, "minibatch"):
        if loss is not None:
            raise ConfigError(f"the task {loader.name} has a loss already; leave loss out.")
        return cast(Task, loader)
    if is_data_module(loader):
        loader, _ = loaders_of(loader)
    return cast(Task, LoaderTask(loader) if loss is None else LossTask(loader, loss))


class _Bar:
    """A progress bar, in a terminal or a notebook, over so many of a ``unit``."""

    unit = "step"

    def __enter__(self) -> "_Bar":
        from tqdm.auto import tqdm

        self._bar = tqdm(unit=self.unit, leave=True)
        return self

    def __call__(self, progress: Any) -> None:
        self._bar.total = progress.total
        self._bar.update(progress.done - self._bar.n)

    def __exit__(self, *error: object) -> None:
        self._bar.close()


class _SearchBar(_Bar):
    """Above it, what scores and how long a candidate takes it."""

    unit = "architecture"
    told = ""

    def __call__(self, progress: Progress) -> None:
        if progress.engine != self.told and progress.has_pace:
            self.told = progress.engine
            self._bar.write(progress.spelled_engine)
        super().__call__(progress)
        if progress.best is not None:
            self._bar.set_postfix(best=f"{progress.best:.4g}", refresh=False)

"""A search over a network and data that a program holds: the settings of ``searching`` from live objects."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from nni_blockswap import searching
from nni_blockswap.architecture import named_arguments
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.conversation import OnProgress, Progress
from nni_blockswap.errors import ConfigError
from nni_blockswap.results.ranking import Ranking
from nni_blockswap.searching import SearchSettings
from nni_blockswap.tasks import TASKS, Task
from nni_blockswap.tasks.loader import LoaderTask, Loss, LossTask, is_data_module, loaders_of

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
    return searching.search(what, given.pop("out", data), on_progress or (lambda progress: None), **given)


def search_own(
    space: BlockSpace,
    loader: Any,
    *,
    budget: str | int | Sequence[str | int],
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
        budget: as ``Budget.parse`` reads it; a list of them gives a list of rankings.
        samples: architectures to score at each budget.
        seed: of samples, weights and minibatch.
        out: folder that keeps the scores as they come, so that a search that was stopped goes on.
        loss: of outputs and labels; None is cross-entropy.
        on_progress: is told after each score; None draws a bar.
        settings: further fields of ``SearchSettings``: ``batch_size``, ``inits``, ``proxy``, ``method``, ...

    Raises:
        BlockSwapError: something given does not fit.
    """
    if not isinstance(space, BlockSpace):
        raise ConfigError(f"a search takes a space, as swap_blocks makes one, not a {type(space).__name__}.")
    known = {one.name for one in fields(SearchSettings)} - {"space", "space_args", "data", "budgets"}
    if unknown := settings.keys() - known:
        raise ConfigError(f"a search has no setting '{min(unknown)}'; it has {', '.join(sorted(known))}.")
    kind: Any = type(space)
    task = _task(loader, loss)

    def given(root: str | None) -> Task:
        return task

    TASKS.register(OWN_DATA, given)
    several = isinstance(budget, Sequence) and not isinstance(budget, str)
    budgets = [str(one) for one in budget] if several else [str(budget)]  # type: ignore[union-attr]
    asked = SearchSettings(
        space=f"{kind.__module__}:{kind.__qualname__}",
        space_args=named_arguments(kind, *space.trace_args, **space.trace_kwargs),
        data=OWN_DATA,
        budgets=budgets,
        samples=samples,
        seed=seed,
        **settings,
    )
    if on_progress is not None:
        rankings = searching.search(asked, out, on_progress)
    else:
        with _Bar() as bar:
            rankings = searching.search(asked, out, bar)
    return rankings if several else rankings[0]


def _task(loader: Any, loss: Loss | None) -> Task:
    if hasattr(loader, "minibatch"):
        if loss is not None:
            raise ConfigError(f"the task {loader.name} has a loss already; leave loss out.")
        return cast(Task, loader)
    if is_data_module(loader):
        loader, _ = loaders_of(loader)
    return cast(Task, LoaderTask(loader) if loss is None else LossTask(loader, loss))


class _Bar:
    """A progress bar, in a terminal or a notebook; above it, what scores and how long a candidate takes it."""

    def __enter__(self) -> "_Bar":
        from tqdm.auto import tqdm

        self._bar = tqdm(unit="architecture", leave=True)
        self._told = ""
        return self

    def __call__(self, progress: Progress) -> None:
        if progress.engine != self._told and progress.has_pace:
            self._told = progress.engine
            self._bar.write(progress.spelled_engine)
        self._bar.total = progress.total
        self._bar.update(progress.done - self._bar.n)
        if progress.best is not None:
            self._bar.set_postfix(best=f"{progress.best:.4g}", refresh=False)

    def __exit__(self, *error: object) -> None:
        self._bar.close()

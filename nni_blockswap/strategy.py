"""BlockSwapStrategy: the search as an exploration strategy of ``nni.nas.experiment.NasExperiment``."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni.nas.execution import ExecutionEngine
from nni.nas.space import ExecutableModelSpace, ModelStatus, RawFormatModelSpace, SimplifiedModelSpace
from nni.nas.strategy.base import Strategy

from nni_blockswap.architecture import Architecture
from nni_blockswap.conversation import Progress
from nni_blockswap.errors import BlockSwapError, ConfigError, SpaceError
from nni_blockswap.experiment.classargs import argument_faults, read_settings
from nni_blockswap.searching import search
from nni_blockswap.spaces import load_space, named_arguments

PERIOD = 10.0
"""Seconds between two lines about how far the search is."""

_log = logging.getLogger("nni.blockswap")


class BlockSwapStrategy(Strategy):  # type: ignore[misc]  # NNI is not typed
    """Searches once, then submits the best students, best first, and waits for their results.

    Scores are Fisher potential unless the setting ``proxy`` is another. The space is the experiment's. It runs with the
    sequential and the training-service engine, the latter with the simplified model format (NNI's raw format cannot be
    sent to a trial).

    Args:
        students: how many of the best to submit; the experiment's budget may allow fewer.
        out: folder that keeps the scores, so that a killed search goes on where it was; None keeps them in memory.
        settings: the fields of ``nni_blockswap.searching.SearchSettings`` but ``space``, ``space_args`` and
            ``candidates``, with one ``budget`` for ``budgets``.

    Raises:
        ConfigError: a setting is unknown, missing or of the wrong type.

    Example:
        >>> BlockSwapStrategy(data="digits", budget="33%", samples=100)
        BlockSwapStrategy(data='digits', budget='33%', samples=100, students=3)
    """

    def __init__(self, *, students: int = 3, out: str | Path | None = None, **settings: Any) -> None:
        super().__init__()
        self._settings = {**settings, "students": students}
        self._out = out
        self._students: list[Architecture] = []
        self._ended: list[str] = []
        self._models: dict[str, ExecutableModelSpace] = {}  # the engine tells them apart by address: they must live on
        for name in ("space", "space_args"):
            if name in settings:
                raise ConfigError(f"the strategy searches the experiment's model space; leave out {name}.")
        if "comparison" in settings:
            raise ConfigError("the strategy trains the best students of one search; leave out comparison.")
        if isinstance(settings.get("library"), Mapping):
            raise ConfigError("the strategy builds no library; name the folder of one, from blockswap library.")
        faults = argument_faults({**self._settings, "space": "module:Class"}, "the strategy", "the arguments")
        if faults:
            raise ConfigError(faults[0])

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._settings.items())

    def _initialize(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        space, arguments = space_of(model_space)
        self._settings |= {"space": space, "space_args": arguments}
        return model_space

    def _run(self) -> None:
        if not self._students:
            settings, count = read_settings(self._settings, {}, Path())
            self._students = list(search(settings, self._out, _Report())[0].top(count))
        for student in self._students:
            if student.id in self._ended:
                continue
            if not self.wait_for_resource():
                _log.info("The experiment's budget is spent; not all students are submitted.")
                break
            self._models[student.id] = self.model_space.freeze(dict(student.choices))
            self.engine.submit_models(self._models[student.id])
        if self._models:
            self.engine.wait_models(*self._models.values())

    def state_dict(self) -> dict[str, Any]:
        """Students, and which of them have ended, in plain types: NNI reads it back with ``weights_only``."""
        over = (ModelStatus.Trained, ModelStatus.Failed)
        ended = [identity for identity, model in self._models.items() if model.status in over]
        students: Any = json.loads(json.dumps([one.to_json() for one in self._students]))  # torch's version is no str
        return {"students": students, "ended": self._ended + ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same students, without those that have ended."""
        self._students = [Architecture.from_json(student, allow=None) for student in state_dict["students"]]
        self._ended = list(state_dict["ended"])


def space_of(model_space: ExecutableModelSpace) -> tuple[str, dict[str, Any]]:
    """("module:Class", constructor's arguments) of the space that an experiment explores.

    Raises:
        SpaceError: its format hides the class, or the class cannot be imported by name.
    """
    if isinstance(model_space, SimplifiedModelSpace):
        traced: Any = model_space.model
    elif isinstance(model_space, RawFormatModelSpace):
        traced = model_space.model_space
    else:
        raise SpaceError(
            f"BlockSwap reads spaces in the formats simplified and raw, not {type(model_space).__name__}; "
            "set the experiment's config.model_format to SimplifiedModelFormatConfig()."
        )
    kind = traced.trace_symbol
    name = f"{kind.__module__}:{kind.__qualname__}"
    try:
        found: Any = load_space(name)
    except BlockSwapError as error:
        raise SpaceError(f"the model space's class cannot be found by its name: {error}") from error
    if found is not kind:
        raise SpaceError(f"'{name}' is another class than the model space's; give each class a name of its own.")
    return name, named_arguments(kind, *traced.trace_args, **traced.trace_kwargs)


class _Report:
    """Logs how far the search is."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() >= self._next or progress.done == progress.total:
            self._next = time.monotonic() + PERIOD
            _log.info("%d of %d candidates scored, best %s", progress.done, progress.total, progress.best)

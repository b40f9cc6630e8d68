"""The plan of a reproduction.

It names experiments, each an nnictl config; sections of the page, each made of the trials of some experiments; and
scales, which say what an experiment has otherwise than its config.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from nni_blockswap.errors import ConfigError, shown
from nni_blockswap.experiment.classargs import fits, spell
from nni_blockswap.experiment.config import Config, words_of
from nni_blockswap.files import expanded
from nni_blockswap.ranges import check_count
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.studies.figures import FIGURES
from nni_blockswap.studies.published import TABLES

FOLDER = re.compile(r"\w[\w.+-]{0,99}")
"""Names of experiments and scales, which folders are called after."""

SHOWN = {"table": ("1", *TABLES), "figure": tuple(FIGURES), "report": ("",)}
"""What a section can show, by the first word."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        of: the experiments whose trials it is made of.
        shows: ``table N``, ``figure NAME`` or ``report``, as ``blockswap report`` has them; ``table 1``, a rank study.
        paper: what the paper has there, in a sentence.
    """

    title: str
    of: Sequence[str]
    shows: str
    paper: str = ""


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        what: in a sentence, for the page.
        class_args: over those of every experiment's tuner.
        trial: options for every trial's command.
        at_once: trials side by side.
        experiments: by name, fields of the comparison over those of the experiment.
        without: experiments that are left out.
        study: ``train_minibatches`` and fields of ``ScoreSettings`` for Table 1.
    """

    what: str
    class_args: Mapping[str, Any] = field(default_factory=dict)
    trial: str = ""
    at_once: int = 1
    experiments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    without: Sequence[str] = ()
    study: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count("at_once", self.at_once)
        for name, changes in self.experiments.items():
            _check_type(f"experiments of {name}", changes, Mapping[str, Any])
        kinds = {**get_type_hints(ScoreSettings), "train_minibatches": Sequence[int]}
        for name, value in self.study.items():
            _check_known(name, kinds, "a study")
            _check_type(f"{name} of the study", value, kinds[name])
        words_of(self.trial, "a scale's trial")


class Plan:
    """A plan's file.

    Raises:
        ConfigError: it cannot be read, or something in it is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        content = Config(path).content
        try:
            for name, kind in (("experiments", Mapping[str, Any]), ("sections", list), ("scales", Mapping[str, Any])):
                _check_type(name, content.get(name), kind)
            self.experiments = {name: path.parent / _file(config) for name, config in content["experiments"].items()}
            self.sections = [_read(Section, one, "a section") for one in content["sections"]]
            self._scales = {name: _read(Scale, one, f"the scale {name}") for name, one in content["scales"].items()}
            self._check()
        except ConfigError as error:
            raise ConfigError(f"the plan '{path}': {error}") from error

    def scale(self, name: str) -> Scale:
        """The scale called ``name``. Raises ConfigError where there is none."""
        if name not in self._scales:
            raise ConfigError(f"there is no scale '{name}'; choose from {', '.join(self._scales)}.")
        return self._scales[name]

    def _check(self) -> None:
        """Raise ConfigError where a name is none of a folder, or of nothing that there is."""
        for name in (*self.experiments, *self._scales):
            if not FOLDER.fullmatch(name):
                raise ConfigError(f"'{name}' names a folder, too; use letters, digits and _ . + - alone.")
        for section in self.sections:
            kind, _, name = section.shows.partition(" ")
            if name not in SHOWN.get(kind, ()):
                raise ConfigError(f"the section '{section.title}' shows '{section.shows}', which nobody can make.")
            if not section.of:
                raise ConfigError(f"the section '{section.title}' is of no experiment.")
            self._check_experiments(section.of)
        for name, scale in self._scales.items():
            self._check_experiments((*scale.experiments, *scale.without))
            if set(scale.without) >= self.experiments.keys():
                raise ConfigError(f"the scale {name} leaves out every experiment.")

    def _check_experiments(self, names: Iterable[str]) -> None:
        for name in names:
            _check_known(name, self.experiments, "it", "experiment ")


Made = TypeVar("Made", Section, Scale)


def _read(kind: type[Made], given: object, what: str) -> Made:
    """``given`` as ``kind``. Raises ConfigError where it is none."""
    _check_type(what, given, Mapping[str, Any])
    values: dict[str, Any] = dict(given)  # type: ignore[call-overload]  # a mapping, as was checked
    hints = get_type_hints(kind)
    for name, value in values.items():
        _check_known(name, hints, what)
        _check_type(f"{name} of {what}", value, hints[name])
    for one in fields(kind):
        if one.default is one.default_factory is MISSING and one.name not in values:
            raise ConfigError(f"{what} has no {one.name}; add it.")
    return kind(**values)


def _file(name: object) -> Path:
    """The path of an experiment's config."""
    _check_type("the config of an experiment", name, str)
    return expanded(str(name))


def _check_type(what: str, value: object, hint: Any) -> None:
    if not fits(value, hint):
        raise ConfigError(f"{what} is {spell(hint)}, not {shown(value)}.")


def _check_known(name: str, known: Iterable[str], what: str, kind: str = "") -> None:
    if name not in known:
        raise ConfigError(f"{what} has no {kind}'{name}'; it has {', '.join(known)}.")

"""All of the paper's tables and figures in order: experiments, what is made of their trials, one page of it all.

A plan names experiments, each an nnictl config; sections of the page, each made of the trials of some experiments; and
scales, which say what an experiment has otherwise than its config. What is done is not done again.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nni_blockswap.conversation import Progress
from nni_blockswap.errors import BlockSwapError, ConfigError
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.page import Part, write_page
from nni_blockswap.experiment.unmanaged import TRIALS, Changes, run_experiment
from nni_blockswap.scoring.proxies import PAPER
from nni_blockswap.studies.figures import FIGURES, draw
from nni_blockswap.studies.published import TABLES, lay_beside
from nni_blockswap.studies.report import report
from nni_blockswap.studies.trained import study_experiment

PAGE = "index.html"


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


class Plan:
    """A plan's file.

    Raises:
        ConfigError: it cannot be read, or something in it is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        content = Config(path).content
        try:
            self.experiments = {name: path.parent / config for name, config in content["experiments"].items()}
            self.sections = [Section(**one) for one in content["sections"]]
            self._scales = {name: Scale(**one) for name, one in content["scales"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            known = ", ".join(one.name for one in fields(Scale))
            raise ConfigError(
                f"the plan '{path}' has experiments, sections (title, of, shows, paper) and scales ({known}): {error}."
            ) from error
        for section in self.sections:
            kind, _, name = section.shows.partition(" ")
            if name not in {"table": ("1", *TABLES), "figure": tuple(FIGURES), "report": ("",)}.get(kind, ()):
                raise ConfigError(f"the section '{section.title}' shows '{section.shows}', which nobody can make.")

    def scale(self, name: str) -> Scale:
        """The scale called ``name``. Raises ConfigError where there is none."""
        if name not in self._scales:
            raise ConfigError(f"there is no scale '{name}'; choose from {', '.join(self._scales)}.")
        return self._scales[name]


def reproduce(
    plan: Plan,
    scale_name: str,
    out: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Run every experiment of ``plan`` and make every section, in ``out``/``scale_name``; the page: ``out``/index.html.

    It is written after each experiment, with what there is by then.

    Returns:
        A sentence for each trial that failed and each section that could not be made.
    """
    scale = plan.scale(scale_name)
    folder = out / scale_name
    faults: list[str] = []
    names = [name for name in plan.experiments if name not in scale.without]
    for number, name in enumerate(names, start=1):
        say(f"{name}, {number} of {len(names)}:")
        trial = [*shlex.split(scale.trial), "--teacher-dir", str((folder / "teachers").resolve())]
        changes = Changes(scale.class_args, scale.experiments.get(name, {}), trial)
        config = Config(plan.experiments[name])
        faults += run_experiment(
            config, changes, folder / name, at_once=scale.at_once, on_progress=on_progress, say=say
        )
        present = set(names[:number])
        unmade = show(plan, scale, present, folder, out / PAGE, on_progress)
    return faults + unmade


def show(
    plan: Plan,
    scale: Scale,
    present: set[str],
    folder: Path,
    page: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[str]:
    """Make the sections whose experiments are all ``present``, and the page; a sentence for each that fails."""
    parts, faults = [], []
    for section in plan.sections:
        left_out = [name for name in section.of if name in scale.without]
        if left_out:
            parts.append(Part(section.title, section.paper, note=f"Not at this scale: {', '.join(left_out)}."))
        elif set(section.of) <= present:
            try:
                parts.append(Part(section.title, section.paper, files=make(section, scale, folder, on_progress)))
            except BlockSwapError as error:
                faults.append(f"{section.title}: {error}")
                parts.append(Part(section.title, section.paper, note=str(error)))
    write_page(page, f"BlockSwap, at scale '{folder.name}'", scale.what, parts)
    return faults


def make(section: Section, scale: Scale, folder: Path, on_progress: Callable[[Progress], None]) -> list[Path]:
    """Make ``section`` of the trials below ``folder``; its tables (CSV) and pictures, in a folder of their own."""
    trials = [folder / name / TRIALS for name in section.of]
    out = folder / "sections" / "-".join([*section.of, *section.shows.split()])
    kind, _, name = section.shows.partition(" ")
    if section.shows == "table 1":
        settings = dict(scale.study)
        steps = settings.pop("train_minibatches", (1, 10, 100))
        study_experiment(trials, settings, PAPER, steps, out, on_progress)
        return [out / "table_1.csv", *sorted(out.glob("*/scatter.png"))]
    if kind == "table":
        lay_beside(name, trials, out)
        return [out / f"table_{name}.csv"]
    if kind == "figure":
        return [draw(name, trials, out)]
    report(trials, out, None)
    return [out / "report.csv", out / "report.png"]

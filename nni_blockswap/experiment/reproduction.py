"""All of the paper's tables and figures in order: experiments, what is made of their trials, one page of it all.

What is done is not done again.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

from nni_blockswap.conversation import OnProgress, unheard
from nni_blockswap.errors import BlockSwapError
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.page import Part, write_page
from nni_blockswap.experiment.plan import Plan, Scale, Section
from nni_blockswap.experiment.unmanaged import TRIALS, Changes, run_experiment
from nni_blockswap.scoring.proxies import PAPER
from nni_blockswap.studies.figures import draw
from nni_blockswap.studies.published import lay_beside
from nni_blockswap.studies.report import report
from nni_blockswap.studies.trained import study_experiment

PAGE = "index.html"


def reproduce(
    plan: Plan,
    scale_name: str,
    out: Path,
    on_progress: OnProgress = unheard,
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
        compared = scale.experiments.get(name, {})
        changes = Changes(scale.class_args, compared, shlex.split(scale.trial), folder / "teachers")
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
    on_progress: OnProgress = unheard,
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


def make(section: Section, scale: Scale, folder: Path, on_progress: OnProgress) -> list[Path]:
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

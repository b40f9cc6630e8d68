"""Reproductions: the shipped plan, the page, what a missing trial leaves; and the whole of it at the smallest scale."""

import re
from pathlib import Path

import pytest
import yaml

from nni_blockswap.cli import main
from nni_blockswap.errors import ConfigError
from nni_blockswap.experiment.config import Config
from nni_blockswap.experiment.page import Part, write_page
from nni_blockswap.experiment.plan import Plan, Scale
from nni_blockswap.experiment.reproduction import show
from nni_blockswap.studies.comparison import Comparison
from tests.studies.test_report import GROUPED, MIXED, trial
from trial import detect, distill

ROOT = Path(__file__).parents[2]
PLAN = ROOT / "reproduce.yml"


@pytest.mark.parametrize("name", ["tiny", "short", "paper"])
def test_the_shipped_plan_has_comparisons_and_commands_that_there_are(name) -> None:
    plan, blocks = Plan(PLAN), 18
    scale = plan.scale(name)
    for experiment, path in plan.experiments.items():
        config = Config(path)
        changed = {**config.arguments["comparison"], **scale.experiments.get(experiment, {})}
        assert Comparison.read(changed).size(blocks) > 0
        module, _, command = f"{config.content['trialCommand']} {scale.trial}".removeprefix("python -m ").partition(" ")
        if experiment not in scale.without:
            parser = {"trial.distill": distill, "trial.detect": detect}[module].parser()
            papers = {"imagenet": 100, "coco": 26}.get(experiment, 200)
            assert parser.parse_args(command.split()).epochs == {"tiny": 3, "short": 5}.get(name, papers)
    named = {one for section in plan.sections for one in section.of}
    assert named == set(plan.experiments)
    assert set(scale.without) <= named


def test_the_paper_scale_has_the_papers_budgets() -> None:
    comparison = Plan(PLAN).scale("paper").experiments["comparison"]
    assert comparison["budgets"] == ["811.4K", "556K", "404.2K", "289.2K", "217K", "162.2K"]
    assert len(Plan(PLAN).scale("paper").experiments["pruning"]["budgets"]) == 7


@pytest.fixture
def folder(tmp_path):
    """Of an experiment called mixing, whose random architectures are too few for a rank study."""
    for number, (choices, error) in enumerate([(MIXED, 20), (GROUPED, 30)]):
        here = tmp_path / "tiny" / "mixing" / "trials" / f"{number:03d}"
        trial(here, choices, 1 - error / 100, seed=0, method="random", variant="36%")
    return tmp_path / "tiny"


def test_the_page_has_every_section_of_what_is_there_and_says_what_is_missing(folder, tmp_path) -> None:
    page = tmp_path / "index.html"
    faults = show(Plan(PLAN), Scale("Small.", without=["imagenet", "coco"]), {"mixing"}, folder, page)
    text = page.read_text()
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == [
        "Figure 2, block mixing", "Table 1, proxies and the final error", "Figure 5, good and bad placements",
        "Table 3, ImageNet", "Table 4, COCO",
    ]  # fmt: skip
    assert "Not at this scale: imagenet." in text
    (fault,) = faults
    assert "Table 1, proxies and the final error: a rank study needs 3" in fault
    assert fault.partition(": ")[2].replace("'", "&#x27;") in text
    pictures = re.findall('src="(.*?)"', text)
    assert len(pictures) == 2
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_tables_are_shown_as_they_are_with_long_fractions_cut(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("method,error\n<b>,0.123456789\nG(4),811400\n")
    write_page(tmp_path / "index.html", "T", "I", [Part("A", files=[tmp_path / "a.csv"])])
    text = (tmp_path / "index.html").read_text()
    assert "<tr><td>&lt;b&gt;</td><td>0.1235</td></tr>" in text
    assert "<td>811400</td>" in text


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"scales": {"tiny": {"speed": 3}}}, "the scale tiny has no 'speed'; it has what, class_args, .*, study"),
        ({"scales": {"tiny": {}}}, "the scale tiny has no what; add it"),
        ({"scales": {"tiny": "small"}}, "the scale tiny is a mapping of names to values, not 'small'"),
        ({"scales": {"tiny": {"what": "A", "trial": "--lr '3"}}}, "trial is no command line .No closing quotation."),
        ({"scales": {"tiny": {"what": "A", "study": {"batch_size": ""}}}}, "batch_size of the study is a whole number"),
        ({"scales": {"../tiny": {"what": "A"}}}, "'../tiny' names a folder, too"),
        ({"sections": [{"title": "A", "of": ["nope"], "shows": "report"}]}, "it has no experiment 'nope'"),
        ({"sections": [{"title": "A", "of": "mixing", "shows": "report"}]}, "of of a section is a list, not 'mixing'"),
        ({"sections": [{"title": "A", "of": ["mixing"], "shows": "table 7"}]}, "'A' shows 'table 7'"),
        ({"sections": [{"title": "A", "of": ["mixing"], "shows": "pictures"}]}, "which nobody can make"),
    ],
)
def test_a_plan_that_is_none(change, rule, tmp_path) -> None:
    content = yaml.safe_load(PLAN.read_text()) | change
    (tmp_path / "plan.yml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=rule):
        Plan(tmp_path / "plan.yml")


def test_an_unknown_scale(capsys, tmp_path) -> None:
    assert main(["reproduce", str(PLAN), "--scale", "huge", "--out", str(tmp_path)]) == 2
    assert "no scale 'huge'; choose from tiny, short, paper" in capsys.readouterr().err


@pytest.mark.slow  # about forty trainings, minutes
def test_the_smallest_scale_reproduces_everything(tmp_path, capsys) -> None:
    given = ["reproduce", str(PLAN), "--scale", "tiny", "--out", str(tmp_path)]
    assert main(given) == 0
    text = (tmp_path / "index.html").read_text()
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == [section.title for section in Plan(PLAN).sections]
    assert text.count('class="note"') == 2  # ImageNet and COCO
    pictures = re.findall('src="(.*?)"', text)
    assert (
        len(pictures) == 8
    )  # Figures 2 to 5, the numbers of samples, and a scatter at each of Table 1's three budgets
    assert all((tmp_path / picture).exists() for picture in pictures)
    written = {path: path.stat().st_mtime for path in tmp_path.rglob("result.json")}
    assert len(written) == 37
    capsys.readouterr()
    assert main(given) == 0  # nothing is trained again
    assert {path: path.stat().st_mtime for path in tmp_path.rglob("result.json")} == written

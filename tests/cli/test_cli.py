import argparse
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.site import label
from nni_blockswap.cli import library, main, parser, search, show
from nni_blockswap.cli.search import add_arguments, settings_of
from nni_blockswap.cost.table import Column, Table
from nni_blockswap.searching import SearchSettings
from nni_blockswap.spaces import cost_table
from tests.conftest import SMALL, WRN

SPACE_ARGS = [f"--space-arg={name}={value}" for name, value in {**SMALL, "image_size": 16}.items()]


def test_space_prints_candidates_costs_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", WRN, "--budget", "400K", "800K", "--tolerance", "0.025"]) == 0
    out = capsys.readouterr().out
    assert "146,538 parameters" in out
    assert "2,243,546 parameters; 327,599,360 MACs" in out
    assert "6.87e+20 architectures" in out
    shares = [float(share) for share in re.findall(r"\(([\d.]+) of all\)", out)]
    assert shares == pytest.approx([0.050, 0.022], abs=5e-4)  # acceptance of uniform proposals, four million draws
    assert "block_17  16 candidates" in out


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("search --out DIR", ("budget", "resources", "include", "exclude")),
        ("space", ("budget", "include", "exclude")),
        ("rank-study ID --out DIR", ("proxies", "include", "exclude")),
        ("library --out DIR --space SPACE --data digits", ("blocks",)),
    ],
)
def test_an_option_that_takes_several_may_be_repeated(command: str, names: tuple[str, ...]) -> None:
    words = [word for name in names for word in (f"--{name}", "a", f"--{name}", "b", "c")]
    options = vars(parser().parse_args([*command.split(), *words]))
    assert {name: options[name] for name in names} == {name: ["a", "b", "c"] for name in names}


def test_more_architectures_than_a_float_holds(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    column = Column("parameters", 5, tuple(np.arange(10) for _ in range(400)))
    labels, names = tuple(map(label, range(400))), ("S", *map(str, range(1, 10)))
    table = Table(labels, (names,) * 400, {"params": column})
    monkeypatch.setattr("nni_blockswap.spaces.cost_table", lambda *_: table)
    assert main(["space", WRN, "--budget", "14"]) == 0
    out = capsys.readouterr().out
    assert "1.000e+400 architectures" in out
    assert "of them in 14-5% (0 of all): 14 to 14 parameters" in out


def test_the_space_is_named_in_its_place_or_as_elsewhere_but_once(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for named in ([WRN], ["--space", WRN]):
        assert main(["space", *named, *SPACE_ARGS]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert main(["space", WRN, "--space", "search_spaces.resnet:ResNetSpace"]) == 2
    assert "the space is named twice" in capsys.readouterr().err


def test_space_json_is_what_nni_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["space", WRN, *SPACE_ARGS, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    table = cost_table(WRN, {**SMALL, "image_size": 16})
    assert {label: tuple(entry["_value"]) for label, entry in content.items()} == dict(
        zip(table.labels, table.candidates, strict=True)
    )
    assert {entry["_type"] for entry in content.values()} == {"choice"}
    content["block_01"]["_value"].remove("S")
    (tmp_path / "space.json").write_text(json.dumps(content))
    assert main(["space", WRN, *SPACE_ARGS, "--json", "--search-space-file", str(tmp_path / "space.json")]) == 0
    assert json.loads(capsys.readouterr().out) == content


def test_space_tells_the_originals_size_also_where_it_is_narrowed_away(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "space.json"
    path.write_text(json.dumps({"block_00": {"_type": "choice", "_value": ["G(N)"]}}))
    assert main(["space", WRN, "--search-space-file", str(path)]) == 0
    assert "original  2,243,546 parameters, 327,599,360 MACs" in capsys.readouterr().out


def test_search_says_nothing_but_progress(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nni_blockswap", "search", "--space", WRN, *SPACE_ARGS, "--data", "digits"]
    command += ["--budget", "30K", "--samples", "4", "--batch-size", "4", "--device", "cpu", "--processes", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=True)
    engine, *progress = done.stderr.splitlines()
    assert engine.startswith("engine: cpu-layers (block by block, ")
    assert [line for line in progress if "candidates" not in line] == []
    assert re.search(r"^engine: cpu-layers \(.*\); [\d.e-]+ s a candidate$", done.stdout, re.MULTILINE)


def test_search_writes_ranking_and_best(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--data", "digits", "--data-option", "held_out=400", "--budget", "30K", "20K", "--samples", "5"]
    arguments += ["--batch-size", "8", "--seed", "3", "--inits", "2", "--out", str(tmp_path), "--device", "cpu"]
    assert main(["search", "--space", WRN, *SPACE_ARGS, *arguments]) == 0
    captured = capsys.readouterr()
    assert "20/20 candidates" in captured.err
    for budget in ("30K", "20K"):
        rows = list(csv.DictReader((tmp_path / budget / "ranking.csv").open()))
        assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
        best = Architecture.load(tmp_path / budget / "best.json")
        assert rows[0]["id"] == best.id
        assert f"{best.params:,} parameters" in captured.out
        assert " ".join(best.choices.values()) in captured.out
    assert "30K-5%: 28,500 to 30,000 parameters" in captured.out


def test_every_option_of_a_search_reaches_its_settings(tmp_path: Path) -> None:
    (tmp_path / "space.json").write_text(json.dumps({"block_00": {"_type": "choice", "_value": ["S", "G(2)"]}}))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    needed = ["--space", WRN, "--data", "cifar10", "--budget", "30K", "--out", "there"]
    plain = SearchSettings(space=WRN, data="cifar10", budgets=["30K"])
    assert settings_of(parser.parse_args(needed)) == plain
    options = "--space-arg depth=10 --space-arg width=1 --data-root images --data-option augment=none --batch-size 7"
    options += " --seed 5 --inits 2 --minibatches 3 --train-minibatches 6 --no-augment --device cpu --precision bf16"
    options += (
        " --processes 4 --recompute --budget 40K macs=50% --tolerance 0.1 --samples 9 --proxy library --library lib"
    )
    options += " --resources latency"
    narrowed = ["--search-space-file", str(tmp_path / "space.json")]
    expected = SearchSettings(
        space=WRN,
        space_args={"depth": 10, "width": 1},
        candidates={"block_00": ["S", "G(2)"]},
        data="cifar10",
        data_root="images",
        data_options={"augment": "none"},
        batch_size=7,
        seed=5,
        inits=2,
        minibatches=3,
        train_minibatches=6,
        augment=False,
        device="cpu",
        precision="bf16",
        processes=4,
        recompute=True,
        budgets=["30K", "40K", "macs=50%"],
        tolerance=0.1,
        resources=("latency",),
        samples=9,
        proxy="library",
        library="lib",
    )
    assert settings_of(parser.parse_args([*needed, *options.split(), *narrowed])) == expected
    assert settings_of(parser.parse_args([*needed, "--at-most"])) == replace(plain, at_most=True)
    own = settings_of(parser.parse_args([*needed, "--method", "other:Method"]))
    assert own == replace(plain, method="other:Method")  # a library leaves a method nothing to do
    alike = {one.name for one in fields(plain) if getattr(plain, one.name) == getattr(expected, one.name)}
    assert alike == {"space", "data", "at_most", "method"}  # a setting without an option would show here


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["space", "nowhere:Space"], "the space 'nowhere:Space' cannot be imported"),
        (["space", WRN, "--space-arg", "depth=abc"], "the arguments {'depth': 'abc', "),
        (["space", WRN, "--space-arg", "depth"], "write NAME=VALUE, not 'depth'"),
        (["space", WRN, "--budget", "lots"], "'lots' is not a budget"),
        (["space", WRN, "--search-space-file", "absent.json"], "no search space can be read from 'absent.json'"),
        (
            ["search", "--space", WRN, "--data", "mnist", "--budget", "400K", "--out", "x"],
            "there is no data set 'mnist'",
        ),
        (["search", "--space", WRN, "--data", "digits", "--budget", "100K", "--out", "x"], "146,538"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("blockswap: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_ends_in_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "runs/ranking.csv")

    monkeypatch.setattr("nni_blockswap.searching.search", full)
    arguments = ["search", "--space", WRN, "--data", "digits", "--budget", "400K", "--out", "runs"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said == "blockswap: [Errno 28] No space left on device: 'runs/ranking.csv'; what was done is kept.\n"


def test_a_reader_that_has_enough_is_no_fault(tmp_path: Path) -> None:
    """As head; little output would be written at Python's end."""
    Architecture.from_choices(WRN, ["G(2)", "B(2)", "S"], SMALL).save(tmp_path / "one.json")
    program = "import sys; from nni_blockswap.cli import main; sys.exit(main(['show', 'one.json']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_folder_that_was_deleted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["show", str(tmp_path / "one.json")]) == 2
    assert capsys.readouterr().err == "blockswap: the current folder was deleted; change to another one.\n"


def test_latency_lays_each_of_several_networks_beside_its_own_teacher(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nni_blockswap.studies import latency

    def told(networks: dict[str, Any], *_: object) -> dict[str, latency.Timing]:
        seconds = {name: float(sum(one.numel() for one in network.parameters())) for name, network in networks.items()}
        return {name: latency.Timing(mean, 0.0) for name, mean in seconds.items()}

    monkeypatch.setattr(latency, "measure", told)
    files = []
    for width in (1, 2):
        files.append(str(tmp_path / f"{width}.json"))
        Architecture.from_choices(WRN, ["G(2)", "B(2)", "S"], {**SMALL, "width": width}).save(files[-1])
    assert main(["latency", *files]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    params = {row[0].strip(): int(row[1].replace(",", "")) for row in rows}
    teachers, faster = list(params.values())[:2], [float(row[-1]) for row in rows]
    assert list(params)[2:] == files
    assert faster[:2] == [1, 1]
    assert faster[2:] == [round(teacher / params[path], 2) for teacher, path in zip(teachers, files, strict=True)]


def test_latency_lays_networks_beside_their_teacher(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nni_blockswap.studies import latency

    monkeypatch.setattr(latency, "ROUNDS", 2)
    monkeypatch.setattr(latency, "SECONDS", 0.01)
    Architecture.from_choices(WRN, ["G(2)", "B(2)", "S"], SMALL).save(tmp_path / "one.json")
    assert main(["latency", str(tmp_path / "one.json"), "--threads", "1", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[:1] + lines[2:4]] == [
        "network", "teacher", str(tmp_path / "one.json"),
    ]  # fmt: skip
    assert lines[2].split("|")[6].strip() == "1.00"
    assert main(["latency", str(tmp_path / "one.json"), "--runtime", "onnxruntime", "--no-teacher"]) == 0
    assert "onnxruntime 1." in capsys.readouterr().out
    assert main(["latency", str(tmp_path / "one.json"), "--threads", "0"]) == 2
    assert "--threads must be above 0, not 0" in capsys.readouterr().err


def test_a_terminal_without_a_letter_for_it_shows_a_question_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Architecture.from_choices(WRN, ["G(2)", "B(2)", "S"], SMALL).save(tmp_path / "one.json")
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="latin-1", write_through=True))
    assert main(["show", str(tmp_path / "one.json")]) == 0
    assert "block_00  G(2)  ??? " in shown.getvalue().decode("latin-1")


@pytest.mark.parametrize(
    ("module", "command", "options"),
    [
        (search, f"search --space {WRN} --budget 40% --data digits --out o", ["recompute", "batch-size", "out"]),
        (library, f"library --space {WRN} --data digits --out o", ["processes", "blocks-at-once", "batch-size", "out"]),
        (show, "show a.json", []),
    ],
)
def test_when_memory_runs_out_the_advice_is_what_the_command_has(
    module: Any, command: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: argparse.Namespace) -> int:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(module, "run", run)
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("blockswap: memory ran out; what was done is kept. Start the same command again w")
    assert re.findall(r"--([\w-]+)", line) == options


def test_a_command_can_be_called_in_a_thread(tmp_path: Path) -> None:
    Architecture.from_choices(WRN, ["G(2)", "B(2)", "S"], SMALL).save(tmp_path / "one.json")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, ["show", str(tmp_path / "one.json")]).result() == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(("handler", "status"), [(signal.SIG_DFL, 130), (signal.SIG_IGN, 0)])
def test_every_signal_that_ends_a_command_interrupts_it_unless_it_is_ignored(
    name: str, handler: signal.Handlers, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ignored are those that nohup, or a script with the command in its background, keeps away."""
    number = signal.Signals[name]

    def run(options: argparse.Namespace) -> int:
        assert signal.getsignal(number) is not signal.SIG_DFL  # which would end the tests
        signal.raise_signal(number)
        return 0

    monkeypatch.setattr(show, "run", run)
    before = signal.signal(number, handler)
    try:
        assert main(["show", "a.json"]) == status
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)

import math
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nni_blockswap.errors import ConfigError, StateError
from nni_blockswap.results.journal import Journal
from nni_blockswap.scoring.proxies import Score

IDENTITY = {"seed": 0, "space_args": {"depth": 10}}


def fill(folder: Path) -> None:
    journal = Journal(folder, IDENTITY)
    journal.add(0, "S S", Score(0.1 + 0.2, (0.1, 0.2)))
    journal.add(1, "S S", Score(math.nan))
    journal.close()


def test_scores_come_back_to_the_bit(tmp_path: Path) -> None:
    fill(tmp_path)
    again = Journal(tmp_path, IDENTITY)
    assert len(again) == 2
    assert again[0, "S S"] == Score(0.1 + 0.2, (0.1, 0.2))
    assert math.isnan(again[1, "S S"].value)
    assert (1, "S B(2)") not in again


def test_a_search_that_found_no_score_binds_nobody(tmp_path: Path) -> None:
    Journal(tmp_path, IDENTITY).close()
    fill_with = Journal(tmp_path, {**IDENTITY, "seed": 1})
    fill_with.add(0, "S S", Score(1.0))
    fill_with.close()
    with pytest.raises(StateError, match="seed was 1, now 0"):
        Journal(tmp_path, IDENTITY)


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_short_is_dropped_and_written_again(tmp_path: Path, cut: int) -> None:
    fill(tmp_path)
    path = tmp_path / "scores.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(tmp_path, IDENTITY)
    assert len(journal) == 1
    journal.add(1, "S S", Score(2.0))
    journal.close()
    assert Journal(tmp_path, IDENTITY)[1, "S S"] == Score(2.0)
    assert len(path.read_text().splitlines()) == 2


def test_every_score_is_on_disk_when_add_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path, IDENTITY)
    for count in range(1, 4):
        journal.add(0, str(count), Score(1.0))
        assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == count


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(StateError, match=r"other settings \(seed was 0, now 1\); choose another output folder"):
        Journal(tmp_path, {**IDENTITY, "seed": 1})
    assert len(Journal(tmp_path, IDENTITY)) == 2


def test_keys_come_in_the_order_of_the_scores(tmp_path: Path) -> None:
    fill(tmp_path)
    assert list(Journal(tmp_path, IDENTITY)) == [(0, "S S"), (1, "S S")]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt' is no folder .*choose another output folder"):
        Journal(path, IDENTITY)
    assert path.read_text() == "mine"


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "scores.jsonl"
    path.write_text("garbage\n" + path.read_text())
    with pytest.raises(StateError, match=r"scores\.jsonl' is damaged"):
        Journal(tmp_path, IDENTITY)


def held(folder: Path, identity: dict[str, Any] = IDENTITY) -> dict[tuple[int, str], str]:
    """The scores in the journal there, to the bit."""
    journal = Journal(folder, identity)
    journal.close()
    return {key: repr(journal[key]) for key in journal}


def flipped(content: bytes) -> Iterator[bytes]:
    """``content`` with one bit flipped, every bit in turn."""
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("name", ["scores.jsonl", "search.json"])
def test_no_flipped_bit_changes_a_score(name: str, tmp_path: Path) -> None:
    """It is told, or nothing is another; what the last line's lost end takes away is found anew."""
    fill(tmp_path)
    path, sound = tmp_path / name, {one: (tmp_path / one).read_bytes() for one in ("scores.jsonl", "search.json")}
    expected = held(tmp_path)
    for content in flipped(sound[name]):
        for one, before in sound.items():
            (tmp_path / one).write_bytes(before)
        path.write_bytes(content)
        try:
            found = held(tmp_path)
        except StateError:
            continue
        assert found.items() <= expected.items()
        assert len(found) == 2 or path.read_bytes() == sound[name][: sound[name].index(b"\n") + 1]


def test_a_flipped_bit_does_not_make_another_search_of_it(tmp_path: Path) -> None:
    """Of no search but the one that wrote them are the scores, whatever search.json says, or where it is lost."""
    fill(tmp_path)
    path = tmp_path / "search.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StateError, match=r"line 1 of .* is damaged, or of another search"):
        Journal(tmp_path, {**IDENTITY, "seed": 1})
    path.unlink()
    with pytest.raises(StateError, match=r"line 1 of .* is damaged, or of another search"):
        Journal(tmp_path, {**IDENTITY, "seed": 1})
    path.unlink()
    assert len(held(tmp_path)) == 2


@pytest.mark.parametrize("lost", ["crc", "cr", '"crc": ', ', "crc": "........"'])
def test_a_line_without_a_checksum_is_refused(lost: str, tmp_path: Path) -> None:
    """As those of versions before are, and those whose key is damaged."""
    fill(tmp_path)
    path = tmp_path / "scores.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{re.sub(lost, '', second)}\n")
    with pytest.raises(StateError, match=r"line 2 of .* delete the line, or the file, and start again"):
        Journal(tmp_path, IDENTITY)
    path.write_text(f"{first}\n")
    assert list(held(tmp_path)) == [(0, "S S")]


@pytest.mark.parametrize(
    "line", ['{"init": 0, "choices": "S", "score": "high", "blocks": []}', "[]", "null", "[" * 9999]
)
def test_what_is_no_score_is_told(tmp_path: Path, line: str) -> None:
    fill(tmp_path)
    (tmp_path / "scores.jsonl").write_text(line + "\n")
    with pytest.raises(StateError, match=r"line 1 of .* is damaged"):
        Journal(tmp_path, IDENTITY)


@pytest.mark.parametrize("content", ["null", "[]", '"text"', "[" * 100_000])
def test_a_search_json_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    fill(tmp_path)
    (tmp_path / "search.json").write_text(content)
    with pytest.raises(StateError, match=r"search\.json' is damaged|other settings"):
        Journal(tmp_path, IDENTITY)


def test_one_search_at_a_time_works_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nni_blockswap.results.journal.PATIENCE", 0.05)
    first = Journal(tmp_path, IDENTITY)
    with pytest.raises(StateError, match="another search is at work in"):
        Journal(tmp_path, IDENTITY)
    first.close()
    Journal(tmp_path, IDENTITY).close()


def test_a_full_disk_holds_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nni_blockswap.results.journal.PATIENCE", 0.05)
    first = Journal(tmp_path, IDENTITY)
    first._stream = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"), closing(first):
        first.add(0, "S S", Score(1.0))
    Journal(tmp_path, IDENTITY).close()


def test_nobody_is_let_into_a_folder_before_it_is_left_as_it_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path, IDENTITY)
    seen: list[bool] = []
    journal._hold.callback(lambda: seen.append((tmp_path / "search.json").exists()))
    journal.close()
    assert seen == [False]


def test_a_killed_search_holds_no_folder(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from nni_blockswap.results.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), {'seed': 0}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    Journal(tmp_path, {"seed": 0}).close()

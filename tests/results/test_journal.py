import math
from pathlib import Path

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

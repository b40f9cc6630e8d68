"""Files that are never seen half-written."""

import errno
import os
from pathlib import Path

import pytest

from nni_blockswap.architecture import Architecture
from nni_blockswap.cost.budget import Budget
from nni_blockswap.errors import BudgetError, SpaceError, StateError
from nni_blockswap.files import LOCK, locked, read_json, write_text


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_holds(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_disk_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_flock)
    with pytest.raises(StateError, match=r"the disk of '.*' has no locks \(flock\); choose"), locked(tmp_path / LOCK):
        pass


def test_json_that_is_nested_without_end_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"nested|Expecting"):
        read_json(tmp_path / "a")
    with pytest.raises(SpaceError, match="no architecture can be read"):
        Architecture.load(tmp_path / "a")


@pytest.mark.parametrize(
    "content",
    [
        {"space": 3, "choices": []},
        {"space": "a:B", "choices": 3},
        {"space": "a:B", "choices": {}, "space_args": []},
        {"space": "a:B", "choices": {}, "score": "high"},
        {"space": "a:B", "choices": {}, "provenance": [1]},
    ],
)
def test_an_architecture_of_other_types_is_told(content: dict[str, object]) -> None:
    with pytest.raises(SpaceError, match="this is not an architecture: its"):
        Architecture.from_json(content)


@pytest.mark.parametrize("text", ["9" * 4400, "0." + "1" * 4400, "params=" + "9" * 30])
def test_a_budget_of_thousands_of_digits_is_none(text: str) -> None:
    with pytest.raises(BudgetError, match="is not a budget"):
        Budget.parse(text)

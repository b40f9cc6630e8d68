"""Blocks that are taught in several processes."""

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_blockswap.errors import DataError, StateError, WorkerError
from nni_blockswap.library.building import build, teach_share
from nni_blockswap.library.library import Library
from nni_blockswap.library.school import OnProgress, Progress
from nni_blockswap.library.workers import Share, shares, teach, threads_each
from nni_blockswap.spaces import cost_table
from tests.conftest import WRN
from tests.library.conftest import SPACE_ARGS, settings

CPU = torch.device("cpu")
TABLE = cost_table(WRN, {"depth": 40})


def test_two_processes_make_the_library_of_one(teacher: Path, library: Library, tmp_path: Path) -> None:
    told: list[Progress] = []
    found = build(settings(teacher, processes=2), tmp_path, told.append)
    assert found.digests == library.digests
    assert found.errors == library.errors
    assert (told[-1].done, told[-1].total) == (18, 18)  # six steps of three blocks
    assert all(0 <= one.done <= one.total for one in told)
    curves = {path.parent.name for path in (tmp_path / "tensorboard").rglob("events.*")}
    assert curves == {"tensorboard", "1"}
    assert build(settings(teacher), tmp_path).digests == library.digests  # how many they were makes no other library


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 18])
def test_every_block_is_taught_once_and_none_has_much_more_to_do(processes: int) -> None:
    asked = shares(settings(Path("t"), processes=processes), CPU, TABLE)
    assert len(asked) == processes
    assert sorted(label for share in asked for label in share.labels) == list(TABLE.labels)
    work = dict(zip(TABLE.labels, (costs.sum() for costs in TABLE.column("macs").costs), strict=True))
    given = [sum(work[label] for label in share.labels) for share in asked]
    assert max(given) - min(given) <= max(work.values())
    assert all(list(share.labels) == sorted(share.labels) for share in asked)
    assert len({share.name for share in asked}) == processes


def test_there_are_no_more_processes_than_blocks_or_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    small = cost_table(WRN, SPACE_ARGS)
    assert len(shares(settings(Path("t"), processes=9), CPU, small)) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    of_gpus = shares(settings(Path("t")), torch.device("cuda"), small)
    assert [share.device for share in of_gpus] == ["cuda:0", "cuda:1"]
    assert [share.device for share in shares(settings(Path("t"), processes=1), torch.device("cuda"), small)] == [
        "cuda:0"
    ]
    assert [share.device for share in shares(settings(Path("t")), torch.device("cuda:1"), small)] == ["cuda:1"]


@pytest.mark.parametrize(
    "own",
    [
        {"data": "loader"},
        {"data": "__main__:Shapes"},
        {"space": "__main__:Space"},
        {"space_args": {"model": "__main__:f"}},
        {"space_args": {"extra": ["__main__:DW(5)"]}},
        {"space_args": {"extra": ["COPY(1)"]}},
    ],
)
def test_what_lives_in_this_process_alone_is_taught_by_it(own: dict[str, Any]) -> None:
    assert len(shares(replace(settings(Path("t"), processes=4), **own), CPU, TABLE)) == 1


def test_a_process_computes_on_one_thread_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a library that is begun with two and gone on with by one is none of either."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert [threads_each(settings(Path("t"), processes=processes), CPU) for processes in (1, 2, None)] == [1, 1, 1]
    assert threads_each(replace(settings(Path("t")), data="loader"), CPU) == 4  # which there is no other process for
    assert threads_each(settings(Path("t")), torch.device("cuda")) == 4


def test_the_process_that_asks_computes_on_as_many_threads_as_its_helpers() -> None:
    found: list[int] = []
    teach(lambda share, told: found.append(torch.get_num_threads()), _nothing, [Share(("a",), "cpu")], 2, _ignore)
    assert found == [2]


def _ignore(progress: Progress) -> None:
    pass


def _nothing(share: Share, on_progress: OnProgress) -> None:
    on_progress(Progress(1, 1, 0.0))


def _ends(how: str, share: Share, on_progress: OnProgress) -> None:
    """In a helper."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fault":
        raise ZeroDivisionError
    raise DataError("no image is left.")


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("killed", WorkerError, "was killed by signal 9; what they learned is kept"),
        ("fault", WorkerError, "ended with code 1"),
        ("sentence", DataError, "no image is left"),
    ],
)
def test_the_end_of_a_helper_is_told(how: str, error: type[Exception], said: str) -> None:
    asked = [Share(("a",), "cpu"), Share(("b",), "cpu", "1")]
    with pytest.raises(error, match=said):
        teach(_nothing, partial(_ends, how), asked, 1, lambda progress: None)


def test_a_helper_that_cannot_be_given_its_work_is_no_reason_to_wait_for_ever() -> None:
    asked = [Share(("a",), "cpu"), Share(("b",), "cpu", "1")]
    with pytest.raises(WorkerError, match="was killed by signal 9"):
        teach(_nothing, lambda share, on_progress: None, asked, 1, lambda progress: None)  # which cannot be pickled


def test_a_process_with_another_teacher_or_other_images_teaches_nothing(teacher: Path, tmp_path: Path) -> None:
    for expected in (("another", "images"), ("x" * 16, "")):
        with pytest.raises(StateError, match="got another teacher, or other images, than this one"):
            teach_share(settings(teacher), tmp_path, expected, Share(("block_00",), "cpu"), lambda progress: None)
    assert not list(tmp_path.glob("*.safetensors"))

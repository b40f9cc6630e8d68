"""Scores from several processes: the same as from one, and nothing lost when one of them dies."""

import io
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nni_blockswap.errors import WorkerError
from nni_blockswap.results.journal import Journal
from nni_blockswap.scoring import scorer as scoring
from nni_blockswap.scoring import workers
from nni_blockswap.scoring.engines import choose, cpu_layers
from nni_blockswap.scoring.proxies import Score
from nni_blockswap.scoring.scorer import draw
from nni_blockswap.scoring.workers import Workers, serve
from tests.scoring.engines.test_chain import FISHER, WRN, batch, covering, scorer, super_network


def test_scores_do_not_depend_on_order_processes_or_a_resume() -> None:
    candidates = covering(super_network(WRN, torch.float32))
    alone = dict(scorer().scores(0, candidates))
    assert sorted(alone) == list(range(len(candidates)))
    backwards = dict(scorer().scores(0, candidates[::-1]))
    assert [backwards[len(candidates) - 1 - position] for position in range(len(candidates))] == [
        alone[position] for position in range(len(candidates))
    ]
    resumed = dict(scorer().scores(0, candidates[7:]))
    assert all(alone[position + 7] == score for position, score in resumed.items())
    assert dict(scorer(processes=3).scores(0, candidates)) == alone


def _leaving_a_mark(start, mark: Path):
    """What ``start`` gives; each of its scores says that this process took part."""
    measure = start()

    def marked(choices) -> Score:
        mark.touch()
        return measure(choices)

    return marked


def test_helpers_find_the_same_scores_as_this_process(tmp_path: Path) -> None:
    candidates = covering(super_network(WRN, torch.float32))
    network = partial(draw, *WRN, 0, "float32", torch.device("cpu"))
    data = [batch(WRN, torch.float32)]
    start = partial(
        cpu_layers.start,
        network,
        FISHER,
        data,
        "float32",
        False,
        cpu_layers.can_compile("float32", torch.device("cpu")),
    )
    mine = start()
    alone = {position: mine(choices) for position, choices in enumerate(candidates)}

    mark = tmp_path / "scored"

    def patient(choices) -> Score:
        for _ in range(100):  # the helper has to start, be given candidates between two of this process's, and score
            if mark.exists():
                break
            time.sleep(0.02)
        return mine(choices)

    shared = dict(Workers(partial(_leaving_a_mark, start, mark), patient, 1).score(candidates * 8))
    assert mark.exists()
    assert shared == {position: alone[position % len(candidates)] for position in range(8 * len(candidates))}


def test_helpers_live_from_one_call_to_the_next_and_end_with_what_has_them(monkeypatch) -> None:
    candidates = covering(super_network(WRN, torch.float32))
    started = []
    start_helper = workers.start_helper
    monkeypatch.setattr(workers, "start_helper", lambda name: started.append(start_helper(name)) or started[-1])
    draws = []
    monkeypatch.setattr(scoring, "choose", lambda work: draws.append(1) or choose(work))
    one = scorer(processes=2)
    first, again = dict(one.scores(0, candidates)), dict(one.scores(0, candidates))
    assert first == again
    assert (len(started), len(draws)) == (1, 1)
    assert dict(one.scores(1, candidates)) != first
    assert (len(started), len(draws)) == (2, 2)
    assert started[0].poll() is not None  # the first draw's
    assert started[1].poll() is None
    one.close()
    assert started[1].poll() is not None


def test_what_is_left_half_done_ends_its_helpers_and_can_be_begun_again() -> None:
    candidates = covering(super_network(WRN, torch.float32))
    one = scorer(processes=2)
    half = one.scores(0, candidates * 4)
    next(half)
    half.close()
    assert dict(one.scores(0, candidates)) == dict(scorer().scores(0, candidates))


def _dies(code: int):
    """In a helper: a measure that ends the process."""
    parent = os.getppid()

    def measure(choices) -> Score:
        os.kill(os.getpid(), code)
        raise AssertionError(parent)

    return measure


def test_a_killed_helper_is_told_in_one_sentence_and_keeps_what_was_found(tmp_path) -> None:
    candidates = covering(super_network(WRN, torch.float32)) * 20  # more than there is time for before it dies
    journal = Journal(tmp_path, {})

    def patient(choices) -> Score:
        time.sleep(0.5)
        return Score(1.0)

    def score_and_record() -> None:
        for position, score in Workers(partial(_dies, signal.SIGKILL), patient, 1).score(candidates):
            journal.add(0, str(position), score)

    with pytest.raises(WorkerError, match=r"a scoring process was killed by signal 9; .* start the same search again"):
        score_and_record()
    journal.close()
    assert len(Journal(tmp_path, {})) == len(journal) > 0


def test_ctrl_c_ends_a_search_and_its_helpers(tmp_path) -> None:
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from tests.scoring.engines.test_chain import covering, scorer, super_network, WRN\n"
        "candidates = covering(super_network(WRN, torch.float32)) * 500\n"
        "for position, score in scorer(processes=2).scores(0, candidates):\n"
        "    print(position, flush=True)\n"
    )
    root = Path(__file__).parents[2]
    search = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert search.stdout is not None
    assert search.stdout.readline().strip().isdigit()
    os.killpg(search.pid, signal.SIGINT)  # as a terminal does: to its whole group
    _, errors = search.communicate(timeout=60)  # returns when no helper holds the pipe any more
    assert errors.count("KeyboardInterrupt") == 1


def test_a_space_of_a_script_is_scored_without_helpers_that_could_not_import_it() -> None:
    code = (
        "from search_spaces.wide_resnet import WideResNetSpace\n"
        "class Own(WideResNetSpace):\n"
        "    pass\n"
        "from nni_blockswap import SearchSettings, search\n"
        f"settings = SearchSettings(space='__main__:Own', space_args={WRN[1]!r}, data='digits', budgets=['50%'],\n"
        "    data_options={'image_size': 8}, samples=20, batch_size=16, processes=2, device='cpu')\n"
        "(ranking,) = search(settings)\n"
        "print(len(ranking.architectures))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-"], input=code, cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "20"


@pytest.mark.parametrize("length", [0, 1, 9])
def test_a_message_that_is_cut_short_ends_a_helper_without_a_word(length, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(code: int) -> None:
        raise SystemExit(code)

    read, write = os.pipe()
    monkeypatch.setattr(os, "_exit", left)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pickle.dumps(list)[:length])))
    with pytest.raises(SystemExit) as ended, os.fdopen(read):
        serve(write)
    assert ended.value.code == 0

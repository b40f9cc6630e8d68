"""BlockSwapTuner as NNI's dispatcher sees it: fresh, resumed, failing, and asked for more than there is."""

import base64
import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import nni
import pytest
from nni.runtime.msg_dispatcher import MsgDispatcher

from nni_blockswap import Architecture, BlockSwapTuner
from nni_blockswap.experiment.classargs import argument_faults
from nni_blockswap.experiment.dispatcher import code_directory
from nni_blockswap.files import read_json, write_json
from tests.conftest import SMALL, WRN

SETTINGS = {"space": WRN, "space_args": SMALL, "data": "digits", "data_options": {"image_size": 8}, "budget": "60%",
            "at_most": True, "samples": 6, "batch_size": 4}  # fmt: skip


FEW = {f"block_{index:02d}": {"_type": "choice", "_value": ["S", "B(2)"][: 2 - min(index, 1)]} for index in range(3)}
"""A search space of two architectures."""


class Dispatcher:
    """What the tuner sees of NNI's dispatcher."""

    stopping = False

    def __init__(self, rerun=()):
        self.recovered_trial_params = dict(enumerate(rerun))
        self.errors = []
        self.sent = []

    def report_error(self, text):
        self.errors.append(text)

    def send_trial_callback(self, parameter_id, parameters):
        self.sent.append((parameter_id, unsigned(parameters)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(folder))
    return folder


def leave_word(folder, trial, parameters, *, final):
    """What a trial that fails by its own fault, or is stopped by hand, leaves behind."""
    home = folder.parent / "environments" / "local-env" / "trials" / trial
    write_json(home / "parameters.json", parameters)
    write_json(home / "failure.json", {"final": final, "sentence": "it diverged."})


def started(search_space=None, **settings):
    tuner = BlockSwapTuner(**{**SETTINGS, **settings})
    tuner.update_search_space(search_space or {})
    return tuner


def ask(tuner, *ids, dispatcher=None):
    callback = (dispatcher or Dispatcher()).send_trial_callback
    return [unsigned(given) for given in tuner.generate_multiple_parameters(list(ids), st_callback=callback)]


def unsigned(given):
    return {name: value for name, value in given.items() if name != "signature"}


def ids(handed_out):
    return [parameters["architecture_id"] for parameters in handed_out]


def test_hands_out_the_best_students_once_each_best_first(folder):
    tuner = started()
    given = ask(tuner, 0) + ask(tuner, 1) + ask(tuner, 2, 3)  # surplus
    assert ask(tuner, 4) == []
    assert [parameters["rank"] for parameters in given] == [1, 2, 3]
    scores = [parameters["score"] for parameters in given]
    assert scores == sorted(scores, reverse=True)
    assert len(set(ids(given))) == 3
    ranking = (folder / "search" / "ranking.csv").read_text().splitlines()
    assert [line.split(",")[-2] for line in ranking[1:4]] == ids(given)


def test_parameters_are_plain_finite_and_describe_the_network(folder):
    (given,) = ask(started(), 0)
    assert json.loads(json.dumps(given, allow_nan=False)) == given
    assert list(given)[:3] == ["block_00", "block_01", "block_02"]
    network = Architecture.from_choices(
        given["space"], {label: given[label] for label in list(given)[:3]}, given["space_args"]
    )
    assert (network.id, network.params, network.macs) == (given["architecture_id"], given["params"], given["macs"])
    assert math.isfinite(given["score"])


def test_the_search_space_narrows_what_is_searched(folder):
    narrow = {
        "block_00": {"_type": "choice", "_value": ["S"]},
        "block_02": {"_type": "choice", "_value": ["B(2)", "B(4)"]},
    }
    given = ask(started(narrow), 0, 1, 2)
    assert {parameters["block_00"] for parameters in given} == {"S"}
    assert {parameters["block_02"] for parameters in given} <= {"B(2)", "B(4)"}


def test_a_comparison_hands_out_its_contestants_seed_by_seed(folder):
    compared = {"methods": ["random", "snip"], "single": ["G(4)"], "seeds": 2}
    given = ask(started(comparison=compared, students=5), *range(6))
    assert [(one["seed"], one["method"], one["variant"]) for one in given] == [
        (0, "random", "60%"),
        (0, "snip", "60%"),
        (0, "single", "G(4)"),
        (1, "random", "60%"),
        (1, "snip", "60%"),
    ]
    assert given[1]["nonzero"] == 46_537  # 60 % of the original's 77,562
    assert {given[2][label] for label in ("block_00", "block_01", "block_02")} == {"G(4)"}
    assert [row["parameters"] for row in read_json(folder / "students.json")] == given


def test_results_are_joined_on_the_architecture_and_kept(folder):
    tuner = started()
    first, second, third = ask(tuner, 0, 1, 2)
    # with trials side by side NNI records the result of one beside the parameters of another
    tuner.receive_trial_result(0, second, {"default": 0.75, "architecture_id": first["architecture_id"]})
    tuner.receive_trial_result(1, second, 0.5)
    leave_word(folder, "t2", third, final=True)
    tuner.trial_end(0, False)  # meant is the third
    tuner.trial_end(2, False)
    table = {row["parameters"]["rank"]: (row["state"], row["accuracy"]) for row in read_json(folder / "students.json")}
    assert table == {1: ("succeeded", 0.75), 2: ("succeeded", 0.5), 3: ("failed", None)}
    assert third["rank"] == 3


def test_a_resumed_tuner_hands_out_only_what_is_left_and_does_not_search_again(folder):
    before = started(students=5)
    given = ask(before, 0, 1, 2, 3)
    leave_word(folder, "t1", given[1], final=True)
    before.trial_end(1, False)
    scores = (folder / "search" / "scores.jsonl").read_bytes()
    after = started(students=5)
    after.load_checkpoint()
    after.import_data([{"parameter": given[0], "value": {"default": 0.9}, "trialJobId": "a"}])  # done
    rest = ask(after, 4, 5, 6, dispatcher=Dispatcher(rerun=[given[2]]))  # started again by NNI itself
    # handed out but never started: the fourth; never handed out: the fifth
    assert [parameters["rank"] for parameters in rest] == [4, 5]
    assert rest[0] == given[3]
    after.import_data([{"parameter": given[2], "value": 0.8}])
    assert (folder / "search" / "scores.jsonl").read_bytes() == scores
    assert [row["state"] for row in read_json(folder / "students.json")] == [
        "succeeded",
        "failed",
        "succeeded",
        "running",
        "running",
    ]


def states(folder):
    return [row["state"] for row in read_json(folder / "students.json")]


def test_a_killed_trials_student_is_handed_out_again_but_not_for_ever(folder):
    tuner, dispatcher = started(), Dispatcher()
    given = ask(tuner, 0, 1, 2, dispatcher=dispatcher)
    tuner.receive_trial_result(0, given[0], 0.9)
    tuner.receive_trial_result(2, given[2], 0.7)
    tuner.trial_end(1, False)
    (second,) = dispatcher.sent  # NNI, which has started as many trials as it was to start, does not ask
    assert second[1] == given[1]
    assert ask(tuner, 7, dispatcher=dispatcher) == []
    tuner.trial_end(second[0], False)
    third = dispatcher.sent[-1]
    assert (third[1], states(folder)) == (given[1], ["succeeded", "running", "succeeded"])
    tuner.trial_end(third[0], False)
    assert (len(dispatcher.sent), states(folder)) == (2, ["succeeded", "lost", "succeeded"])
    assert ask(tuner, 8) == []
    assert ask(started(), 0, 1) == [given[1]]  # nnictl resume


def test_a_student_that_was_stopped_by_hand_waits_for_the_next_resume(folder):
    tuner, dispatcher = started(), Dispatcher()
    given = ask(tuner, 0, 1, 2, dispatcher=dispatcher)
    leave_word(folder, "t0", given[0], final=False)
    tuner.trial_end(0, False)
    assert (dispatcher.sent, states(folder)[0]) == ([], "lost")
    assert ask(started(), 0)[0] == given[0]


def test_a_student_that_failed_while_no_tuner_listened_has_failed(folder):
    given = ask(started(), 0, 1, 2)
    leave_word(folder, "t0", given[0], final=True)
    assert ask(started(), 0, 1, 2) == given[1:]
    assert states(folder)[0] == "failed"


def test_the_log_says_what_scored_and_how_fast(folder, caplog):
    with caplog.at_level("INFO", "nni_blockswap.tuner"):
        ask(started(), 0)
    said = [line for line in caplog.messages if line.startswith("engine: ")]
    assert len(said) == 1
    assert said[0].endswith(" s a candidate")


def test_a_killed_search_goes_on(folder, monkeypatch):
    class Stopping(Dispatcher):
        stopping = True

    with pytest.raises(Exception, match="being stopped"):
        ask(started(), 0, dispatcher=Stopping())
    scored = (folder / "search" / "scores.jsonl").read_text().splitlines()
    assert len(scored) == 1
    ask(started(), 0)
    assert (folder / "search" / "scores.jsonl").read_text().splitlines()[0] == scored[0]
    assert read_json(folder / "progress.json")["fresh"] == 5


@pytest.mark.parametrize(
    ("settings", "space", "sentence"),
    [
        ({"space": "nowhere:Space"}, None, "the space 'nowhere:Space' cannot be imported"),
        ({"budget": "10"}, None, "parameters reach from"),
        ({"budget": "a third"}, None, "'a third' is not a budget"),
        ({"data": "mnist"}, None, "there is no data set 'mnist'"),
        ({"sampels": 3}, None, "the tuner has no argument 'sampels'"),
        ({"samples": "many"}, None, "samples is a whole number, not 'many'"),
        ({"students": 0}, None, "students must be above 0, not 0"),
        ({"students": 7}, None, "samples is 6, and 7 students are asked for; raise samples"),
        ({"students": 3, "budget": "100%"}, FEW, "3 students are asked for and 2 architectures have a score"),
        ({}, {"block_09": {"_type": "choice", "_value": ["S"]}}, "'block_09' is not a block"),
        ({}, {"block_00": {"_type": "uniform", "_value": [0, 1]}}, "its 'block_00' is"),
        ({}, ["S"], "a search space maps each block"),
    ],
)
def test_every_fault_ends_the_experiment_with_one_sentence(folder, capsys, settings, space, sentence):
    dispatcher = Dispatcher()
    tuner = started(space, **settings)
    assert ask(tuner, 0, dispatcher=dispatcher) == []
    assert len(dispatcher.errors) == 1
    assert sentence in dispatcher.errors[0]
    assert capsys.readouterr().err == f"BlockSwap: {dispatcher.errors[0]}\n"
    assert (folder / "error.txt").read_text() == f"{dispatcher.errors[0]}\n"


def test_an_unexpected_error_ends_the_experiment_too(folder, monkeypatch):
    def explode(*_):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("nni_blockswap.searching.search", explode)
    dispatcher = Dispatcher()
    assert ask(started(), 0, dispatcher=dispatcher) == []
    assert dispatcher.errors == ["the search failed unexpectedly, ZeroDivisionError: boom; see dispatcher.log."]


def test_nothing_raises_where_nni_would_be_left_running(folder):
    tuner = started()
    tuner.trial_end(99, False)
    tuner.import_data([{"parameter": {"block_00": "S"}, "value": 1.0}])
    ask(tuner, 0)
    tuner.receive_trial_result(0, {}, {"loss": 1.0})
    tuner.receive_trial_result(0, {}, "no number")
    (folder / "students.json").unlink()
    (folder / "students.json").mkdir()  # cannot be written to
    tuner.trial_end(0, False)


def test_results_from_several_threads_are_all_kept(folder):
    tuner = started(students=6)
    given = ask(tuner, *range(6))
    threads = [
        threading.Thread(target=tuner.receive_trial_result, args=(number, parameters, number / 10))
        for number, parameters in enumerate(given)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["accuracy"] for row in read_json(folder / "students.json")] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_works_with_nnis_own_dispatcher(folder, monkeypatch):
    monkeypatch.setattr(nni.runtime.msg_dispatcher, "_next_parameter_id", 0)
    sent = []
    dispatcher = MsgDispatcher("ws://_unittest_placeholder_", BlockSwapTuner(**SETTINGS))
    monkeypatch.setattr(dispatcher, "send", lambda command, data: sent.append((command.name, data)))
    dispatcher.handle_initialize({})
    dispatcher.handle_request_trial_jobs(2)
    dispatcher.handle_request_trial_jobs(2)
    assert [name for name, _ in sent] == ["Initialized", "NewTrialJob", "NewTrialJob", "NewTrialJob", "NoMoreTrialJobs"]
    assert [json.loads(data)["parameters"]["rank"] for _, data in sent[1:4]] == [1, 2, 3]


def test_constructing_it_imports_neither_torch_nor_nni_nas():
    code = (
        "import sys; from nni_blockswap import BlockSwapTuner; BlockSwapTuner(space='nowhere:X', wrong=1);"
        "print([name for name in ('torch', 'nni.nas', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == "[]"


def test_relative_paths_are_below_the_code_directory(monkeypatch):
    config = {"tuner": {"codeDirectory": "/somewhere/project"}}
    encoded = base64.b64encode(json.dumps(config).encode()).decode()
    monkeypatch.setattr(sys, "argv", ["nni", "--exp_params", encoded])
    assert code_directory() == Path("/somewhere/project")


def test_images_are_looked_for_below_the_code_directory(folder, monkeypatch):
    encoded = base64.b64encode(json.dumps({"tuner": {"codeDirectory": str(folder / "project")}}).encode()).decode()
    monkeypatch.setattr(sys, "argv", ["nni", "--exp_params", encoded])
    dispatcher = Dispatcher()
    assert ask(started(data="image-folder", data_root="images"), 0, dispatcher=dispatcher) == []
    assert f"there is none in '{folder / 'project' / 'images'}'" in dispatcher.errors[0]


def test_arguments_of_every_kind_are_checked():
    assert (
        argument_faults({**SETTINGS, "budget": 400_000, "tolerance": 0.05, "data_root": None, "augment": False}) == []
    )
    faults = argument_faults(
        {"space": 3, "tolerance": "wide", "augment": 1, "space_args": [16], "samples": True, "budgets": "1M"}
    )
    assert len(faults) == 8
    expected = [
        "'budgets'",
        "'budget' is missing",
        "'data' is missing",
        "space is text, not 3",
        "tolerance is a number or null",
        "augment is true or false, not 1",
        "space_args is a mapping",
        "samples is a whole number, not True",
    ]
    assert all(any(text in fault for fault in faults) for text in expected)


def test_a_trial_that_nni_starts_again_holds_the_student_in_its_folder(folder, monkeypatch):
    """NNI recorded two trials with each other's parameters, and the third before it had begun."""
    monkeypatch.setenv("NNI_MODE", "resume")
    given = ask(started(students=4), 0, 1, 2)
    for trial, student in (("t0", given[1]), ("t1", given[0])):
        write_json(folder.parent / "environments" / "worker" / "trials" / trial / "parameters.json", student)
    recorded = [
        {"trialJobId": f"t{number}", "status": status, "hyperParameters": [json.dumps({"parameters": parameters})]}
        for number, (status, parameters) in enumerate(
            [("SUCCEEDED", given[0]), ("ADD_RESUMED", given[1]), ("ADD_RESUMED", given[1])]
        )
    ]
    profile = {"params": {"maxTrialNumber": 3}}
    raised = []
    manager = SimpleNamespace(
        folder=folder.parent,
        trials=lambda: recorded,
        get=lambda what: profile,
        put=lambda what, content: raised.append(content["params"]["maxTrialNumber"]),
    )
    monkeypatch.setattr("nni_blockswap.tuner.manager_port", lambda: 1)
    monkeypatch.setattr("nni_blockswap.tuner.Experiment", lambda port: manager)
    write_json(folder / "max_trials.json", 3)
    after = started(students=4)
    rest = ask(after, 3, 4, dispatcher=Dispatcher(rerun=[given[1], given[1]]))
    assert [parameters["rank"] for parameters in rest] == [3, 4]  # t1 has the first, t2 is given the second
    assert raised == [4, 4]


def test_a_result_whose_parameters_nni_has_overwritten_counts(folder):
    """With trials side by side NNI answers "no more" under the id of the last student."""
    tuner = started()
    (first,) = ask(tuner, 0)
    tuner.receive_trial_result(0, "", {"default": 0.75, "architecture_id": first["architecture_id"]})
    assert read_json(folder / "students.json")[0]["accuracy"] == 0.75

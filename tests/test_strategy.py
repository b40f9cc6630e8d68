"""BlockSwapStrategy behaves as NNI's own strategies do, in both engines."""

import math
import socket
from pathlib import Path

import nni
import pytest
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.experiment import NasExperiment
from nni.nas.experiment.config import SequentialEngineConfig
from nni.nas.space import ModelStatus, RawFormatModelSpace, SimplifiedModelSpace
from nni.tools.nnictl.config_utils import Experiments

from nni_blockswap import Architecture, BlockSwapStrategy
from nni_blockswap.errors import ConfigError, ScoreError, SpaceError
from nni_blockswap.scoring.proxies import Score
from nni_blockswap.scoring.scorer import Scorer
from search_spaces.wide_resnet import WideResNetSpace
from tests.conftest import SMALL, WRN

SEARCH = {"data": "digits", "data_options": {"image_size": 8}, "budget": "60%", "samples": 4, "batch_size": 4}


def count_parameters(model):
    """An evaluator whose metric tells which network it was given."""
    nni.report_final_result(sum(weight.numel() for weight in model.parameters()))


def fail_the_first(model):
    fail_the_first.calls += 1
    if fail_the_first.calls == 1:
        raise RuntimeError("the first student cannot be trained")
    nni.report_final_result(sum(weight.numel() for weight in model.parameters()))


def executable(kind=SimplifiedModelSpace, evaluate=count_parameters):
    return kind.from_model(WideResNetSpace(**SMALL), FunctionalEvaluator(evaluate))


def params_of(model):
    return Architecture.from_choices(WRN, model.sample, SMALL).params


def explored(engine, strategy=None, **space):
    strategy = strategy or BlockSwapStrategy(**SEARCH)
    strategy(executable(**space), engine)
    return strategy


@pytest.mark.parametrize("kind", [SimplifiedModelSpace, RawFormatModelSpace])
def test_submits_the_best_students_and_lists_them_with_their_own_metrics(kind):
    strategy = explored(SequentialExecutionEngine(), kind=kind)
    models = list(strategy.list_models())
    assert len(models) == 3
    assert [model.metric for model in models] == sorted((params_of(model) for model in models), reverse=True)
    assert len({str(model.sample) for model in models}) == 3
    most = Architecture.from_choices(WRN, ["S"] * 3, SMALL).params
    assert all(model.metric <= 0.6 * most for model in models)


def test_stops_at_the_engines_budget():
    strategy = explored(SequentialExecutionEngine(max_model_count=2))
    assert len(list(strategy.list_models())) == 2


def test_goes_on_after_a_failing_student():
    fail_the_first.calls = 0
    engine = SequentialExecutionEngine(continue_on_failure=True)
    explored(engine, evaluate=fail_the_first)
    assert [model.status for model in engine.list_models()] == [
        ModelStatus.Failed,
        ModelStatus.Trained,
        ModelStatus.Trained,
    ]


def test_state_survives_torchs_safe_loading_and_no_student_is_trained_twice(tmp_path):
    first = explored(SequentialExecutionEngine(max_model_count=2))
    torch.save(first.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state")  # weights_only, by default, is how NNI reads it
    second, engine = BlockSwapStrategy(**SEARCH), SequentialExecutionEngine()
    second.initialize(executable(), engine)
    second.load_state_dict(state)
    second.run()
    samples = [model.sample for model in [*first.list_models(sort=False), *second.list_models(sort=False)]]
    assert len(samples) == len({str(sample) for sample in samples}) == 3
    assert second.state_dict()["ended"] == [Architecture.from_json(student).id for student in state["students"]]


def test_scores_are_kept_in_a_folder_and_used_again(tmp_path, monkeypatch):
    first = explored(SequentialExecutionEngine(), BlockSwapStrategy(**SEARCH, out=tmp_path))
    assert (tmp_path / "scores.jsonl").read_text().count("\n") == SEARCH["samples"]

    def refuse(*arguments):
        raise AssertionError("a score was taken anew")

    monkeypatch.setattr(Scorer, "scores", refuse)
    second = explored(SequentialExecutionEngine(), BlockSwapStrategy(**SEARCH, out=tmp_path))
    assert second.state_dict() == first.state_dict()


def test_no_finite_score_is_an_error(monkeypatch):
    monkeypatch.setattr(
        Scorer, "scores", lambda self, init, candidates: ((k, Score(math.nan)) for k in range(len(candidates)))
    )
    with pytest.raises(ScoreError, match="none of the 4 candidates at 60%-5% has a finite score"):
        explored(SequentialExecutionEngine())


def test_is_as_strict_as_nnis_own_about_running_twice():
    strategy = explored(SequentialExecutionEngine())
    with pytest.raises(RuntimeError, match="already been initialized"):
        strategy(executable(), SequentialExecutionEngine())


def test_the_whole_experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(Experiments.__init__, "__defaults__", (str(tmp_path),))  # NNI lists it there, not at home
    experiment = NasExperiment(
        WideResNetSpace(**SMALL), FunctionalEvaluator(count_parameters), BlockSwapStrategy(**SEARCH, students=2)
    )
    experiment.config.execution_engine = SequentialEngineConfig()
    experiment.config.experiment_working_directory = tmp_path
    experiment.run()
    top = experiment.export_top_models(2, formatter="dict")
    metrics = [model.metric for model in experiment.export_top_models(2)]
    assert [Architecture.from_choices(WRN, sample, SMALL).params for sample in top] == metrics
    built = experiment.export_top_models(1, formatter="instance")[0]
    assert sum(weight.numel() for weight in built.parameters()) == metrics[0]
    experiment.stop()


@pytest.mark.slow  # starts NNI's manager and a process for each student
def test_the_whole_experiment_in_the_training_service(tmp_path: Path):
    experiment = NasExperiment(
        WideResNetSpace(**SMALL), FunctionalEvaluator(count_parameters), BlockSwapStrategy(**SEARCH, students=2)
    )
    experiment.config.max_trial_number = 2
    experiment.config.trial_concurrency = 1
    experiment.config.trial_code_directory = Path(__file__).parents[1]
    experiment.config.experiment_working_directory = tmp_path
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    assert experiment.run(port=port)
    models = experiment.export_top_models(2)
    experiment.stop()
    assert len(models) == 2
    assert [model.metric for model in models] == [params_of(model) for model in models]


def test_a_space_without_a_name_of_its_own_is_refused():
    class Local(WideResNetSpace):
        pass

    with pytest.raises(SpaceError, match="cannot be found by its name"):
        BlockSwapStrategy(**SEARCH).initialize(
            SimplifiedModelSpace.from_model(Local(**SMALL), FunctionalEvaluator(count_parameters)),
            SequentialExecutionEngine(),
        )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"data": "digits"}, "argument 'budget' is missing; add it to the arguments"),
        ({**SEARCH, "sample": 3}, "the strategy has no argument 'sample'"),
        ({**SEARCH, "samples": "many"}, "samples is a whole number, not 'many'"),
        ({**SEARCH, "samples": "classArgs of the tuner"}, "^the strategy's .* not 'classArgs of the tuner'.$"),
        ({**SEARCH, "space": WRN}, "leave out space"),
        ({**SEARCH, "comparison": {"methods": ["random"]}}, "leave out comparison"),
        ({**SEARCH, "library": {"folder": "library"}}, "builds no library; name the folder of one"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        BlockSwapStrategy(**settings)

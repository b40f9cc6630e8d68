"""What a result says of itself: its metric by name, its value; and what older results, which name none, mean."""

import pytest
from pytorch_lightning import LightningDataModule

from nni_blockswap.errors import StateError
from nni_blockswap.metric import ACCURACY, BOX_AP, UNKNOWN, Metric, judged
from nni_blockswap.tasks import TASKS, metric_of
from nni_blockswap.tasks.classification import Classification

RMSE = Metric("mean error", higher_is_better=False, is_share=False)


@pytest.mark.parametrize("metric", [ACCURACY, BOX_AP, RMSE])
def test_a_result_is_read_by_the_metric_that_it_names(metric: Metric) -> None:
    other = {"accuracy": 0.5, "box_AP": 0.25}
    assert judged({**other, metric.key: 0.75, "metric": metric.recorded()}) == (metric, 0.75)


def test_results_from_before_metrics_had_names_are_read() -> None:
    assert judged({"accuracy": 0.5, "top5": 1.0}) == (ACCURACY, 0.5)
    assert judged({"box_AP": 0.25, "mask_AP": 0.5}) == (BOX_AP, 0.25)


@pytest.mark.parametrize(
    "result",
    [{}, {"loss": 1.0}, {"accuracy": "high"}, {"accuracy": True}, {"accuracy": None}, {"metric": RMSE.recorded()}],
)
def test_a_result_without_a_value_is_refused_in_a_sentence(result: dict[str, object]) -> None:
    with pytest.raises(StateError, match="the trial of A7 has no value of its metric in its result; run it again"):
        judged({**result, "architecture_id": "A7"})


def test_a_metric_knows_which_of_two_is_better_and_how_it_is_shown() -> None:
    assert max([0.2, 0.9], key=ACCURACY.merit) == 0.9
    assert max([0.2, 0.9], key=RMSE.merit) == 0.2
    assert (ACCURACY.show(0.875), RMSE.show(12.5)) == ("87.50%", "12.5")


def test_a_data_set_names_its_metric_without_its_files() -> None:
    own = [name for name in TASKS if TASKS.is_everywhere(name)]  # and not what other tests have registered
    assert {name: metric_of(name).name for name in own} == dict.fromkeys(own, "accuracy") | {"coco": "box AP"}
    assert metric_of("a data set that there is not") == UNKNOWN


def test_a_data_set_from_outside_need_not_say_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS, "_loaded", {**TASKS._loaded, "mine": lambda root: None})
    assert metric_of("mine") == UNKNOWN


class Ages(Classification):
    metric = RMSE


class Shapes(LightningDataModule):
    pass


def ages(root: str | None = None) -> Ages:
    return Ages()


def unsaid(root: str | None = None) -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
    return Ages()


@pytest.mark.parametrize(
    ("name", "metric"),
    [("ages", RMSE), ("unsaid", UNKNOWN), ("missing", UNKNOWN), ("Shapes", ACCURACY)],
)
def test_a_data_set_that_is_named_by_its_import_path_says_its_metric_too(name: str, metric: Metric) -> None:
    assert metric_of(f"{__name__}:{name}") == metric

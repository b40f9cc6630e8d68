"""Data sets as the options of a command line name them."""

from nni_blockswap.data_options import CLASSIFICATION, DETECTION
from nni_blockswap.metric import ACCURACY, BOX_AP
from nni_blockswap.tasks import TASKS, metric_of
from trial import detect, distill, teacher


def test_all_that_are_known_are_named_where_they_can_be_trained_on() -> None:
    known = {name: metric_of(name) for name in TASKS if TASKS.is_everywhere(name)}  # and not what other tests register
    assert known == dict.fromkeys(CLASSIFICATION, ACCURACY) | dict.fromkeys(DETECTION, BOX_AP)
    for trial, names, usual in ((distill, CLASSIFICATION, "cifar10"), (teacher, CLASSIFICATION, "cifar10"),
                                (detect, DETECTION, "coco")):  # fmt: skip
        shown = " ".join(trial.parser().format_help().split())
        assert f"data set: {', '.join(names)}, or module:function of your own (default {usual})" in shown

"""A trial's result, as it is and as it should not be."""

import json
from pathlib import Path
from typing import Any

import pytest

from nni_blockswap.errors import StateError
from nni_blockswap.results.trial import read_result

GOOD: dict[str, Any] = {"accuracy": 0.5, "params": 9, "macs": 8, "architecture_id": "a7", "teacher_accuracy": 0.9}
WRONG: dict[str, list[Any]] = {
    "accuracy": ["high", None, [], True, float("nan"), float("inf"), -1, 12.5],
    "params": ["many", None, [], 1.5, True, -9],
    "macs": ["x"],
    "architecture_id": [3, None, []],
    "teacher_accuracy": ["x", [], True, float("nan"), 2],
    "metric": [3, "accuracy", [], {"name": 3}, {"name": "loss"}, {"name": "accuracy", "is_share": "yes"}],
    "method": [3, []],
    "variant": [3, []],
    "seed": ["x", []],
}


def test_a_good_result_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(GOOD))
    assert read_result(tmp_path / "result.json") == GOOD


@pytest.mark.parametrize(
    "text",
    ["null", "3", "[]", '"x"', "{", "{}", '[["accuracy", 0.5]]', "\N{SNOWMAN}", "[" * 100_000,
     *(json.dumps({**GOOD, name: value}) for name, values in WRONG.items() for value in values)],
)  # fmt: skip
def test_any_other_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(StateError, match=r"result\.json' is damaged \(.*\); run the trial again\.$") as said:
        read_result(tmp_path / "result.json")
    assert "\n" not in str(said.value)

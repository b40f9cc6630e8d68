"""What a network is judged by: the name of the figure, how it is shown, and which of two is the better one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nni_blockswap.errors import StateError
from nni_blockswap.finite import is_finite


@dataclass(frozen=True)
class Metric:
    """A figure of a trained network.

    Attributes:
        name: for people, as in "box AP".
        higher_is_better: whether a larger value is the better one.
        is_share: whether it lies in [0, 1] and is shown in percent.

    Example:
        >>> metric = Metric("box AP")
        >>> metric.key, metric.show(0.25)
        ('box_AP', '25.00%')
    """

    name: str
    higher_is_better: bool = True
    is_share: bool = True

    @property
    def key(self) -> str:
        """Its name in files and curves."""
        return self.name.replace(" ", "_")

    def show(self, value: float) -> str:
        """The value for people."""
        return f"{value:.2%}" if self.is_share else f"{value:.4g}"

    def merit(self, value: float) -> float:
        """What is the larger, the better."""
        return value if self.higher_is_better else -value

    def __str__(self) -> str:
        return self.name

    def recorded(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)


ACCURACY, BOX_AP = Metric("accuracy"), Metric("box AP")
UNKNOWN = Metric("result", is_share=False)
"""Until a trial says what it is judged by."""


def judged(result: Mapping[str, Any]) -> tuple[Metric, float]:
    """What the trial that wrote ``result`` is judged by, and its value.

    Raises:
        StateError: the result names no metric, or has no number for it.
    """
    metric = _metric_of(result)
    value = result.get(metric.key) if metric is not None else None
    if metric is None or isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        raise StateError(
            f"the trial of {result.get('architecture_id')} has no value of its metric in its result; run it again."
        )
    return metric, float(value)


def _metric_of(result: Mapping[str, Any]) -> Metric | None:
    named = result.get("metric")
    if named is not None:
        is_one = isinstance(named, Mapping) and isinstance(named.get("name"), str)
        flags = [named.get(flag, True) for flag in ("higher_is_better", "is_share")] if is_one else []
        return Metric(named["name"], *flags) if flags and all(isinstance(flag, bool) for flag in flags) else None
    return next((one for one in (ACCURACY, BOX_AP) if one.key in result), None)  # written before metrics had a name

"""Intermediate results as NNI's manager tells them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def periodical(curves: Mapping[str, Sequence[float]], pace: float = 1.0) -> list[dict[str, Any]]:
    """Those of which ``curves`` says the values, by trial, one every ``pace`` seconds."""
    return [
        {"trialJobId": trial, "sequence": place, "timestamp": 1e3 * pace * place, "data": json.dumps(json.dumps(value))}
        for trial, curve in curves.items()
        for place, value in enumerate(curve)
    ]

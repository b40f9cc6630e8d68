"""The teacher of the students in ``quarters``."""

import pytest
from torch import nn

from tests.training.quarters import net


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return net(16, seed=1)

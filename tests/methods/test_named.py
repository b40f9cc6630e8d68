"""Methods by name."""

import pytest

from nni_blockswap.errors import ConfigError
from nni_blockswap.methods import METHODS, method_named


class Deaf:
    def __init__(self, problem: object) -> None: ...

    def ask(self) -> None: ...


class Unasked(Deaf):
    def __init__(self) -> None: ...

    def tell(self, scores: object) -> None: ...


def test_every_method_of_this_package_is_one() -> None:
    assert [method_named(name) for name in METHODS] == [METHODS[name] for name in METHODS]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (f"{__name__}:Deaf", "has no tell; see nni_blockswap/methods/base.py"),
        (f"{__name__}:Unasked", r"has no __init__\(problem\)"),
        ("string:digits", r"'string:digits', '0123456789', has no __init__\(problem\)"),
    ],
)
def test_what_is_no_method_is_told(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        method_named(name)

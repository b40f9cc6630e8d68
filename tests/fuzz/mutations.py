"""Valid input that is made wrong: hypothesis strategies over documents, bytes and command lines."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DEEP: list[Any] = []
for _ in range(300):
    DEEP = [DEEP]

TEXTS = ("", " ", "x", "nan", "inf", "-1", "0", "1e400", "9" * 5000, "36%", "0%", "1K", "params=1K,params=2K", "macs=",
         "=", "a=b", "S", "G(2)", "G(0)", "G(-1)", "G(99999999)", "B(2", "BG(2,4)", "S,S", "é", "\u202e", "%s", "{}",
         "~nouser/x", "/dev/null/x", "/proc/x", "missing/x", ".", "a" * 300, "a\nb",
         "mine", "nowhere:X", "json:nothing", "json:", ":", "os.path:join", "builtins:exit", "builtins:int",
         "torch.nn:Module", "torch.nn:Identity", "nni_blockswap.blocks.space:BlockSpace", "torchvision:nope",
         "search_spaces.resnet:ResNetSpace", "search_spaces.wide_resnet:WideResNetSpace", "torchvision.models:resnet18",
         "digits", "cifar10", "uniform", "additive", "evolution", "halving", "fisher", "naswot", "taylor+naswot",
         "library", "snip", "float64", "bf16", "meta", "cuda:7", "cpu", "auto")  # fmt: skip
"""What stands for something else somewhere, is no text that anybody means, or is beyond every measure. None names a
file that could be overwritten, or a function that does harm."""

NUMBERS = (0, -1, 1, 2, 3, 7, 1000, 10**5, 2**31, 2**32, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.5, 1e-300, 1e308,
           float("inf"), float("-inf"), float("nan"))  # fmt: skip
OTHERS = (None, True, False, [], {}, [[]], [None], ["S"], {"a": 1}, {1: 0}, {"": ""}, DEEP)

CHANGES = "replace", "replace", "alter", "alter", "drop", "rename", "move", "add", "wrap"

hostile = st.sampled_from([*TEXTS, *NUMBERS, *OTHERS])


@st.composite
def mutated(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """``document``, a tree of mappings, lists and plain values, with up to ``most`` changes."""
    changed = {"": copy.deepcopy(document)}
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(changed))
        home, key = places[draw(st.integers(0, len(places) - 1))]
        change = draw(st.sampled_from(CHANGES))
        if change == "replace":
            home[key] = copy.deepcopy(draw(hostile))
        elif change == "alter":
            home[key] = draw(_altered(home[key]))
        elif change == "drop":
            if home is not changed:
                del home[key]
        elif change == "rename" and isinstance(home, dict) and home is not changed:
            home[draw(_altered(key))] = home.pop(key)
        elif change == "move":
            other, place = places[draw(st.integers(0, len(places) - 1))]
            home[key] = copy.deepcopy(other[place])
        elif change == "add":
            inner = home[key]
            if isinstance(inner, dict):
                inner[draw(st.sampled_from(TEXTS))] = copy.deepcopy(draw(hostile))
            elif isinstance(inner, list):
                inner.append(copy.deepcopy(draw(hostile)))
        else:
            home[key] = draw(st.sampled_from(([home[key]], {"x": home[key]})))
    return changed[""]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every part."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(parts):
        yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)


@st.composite
def _altered(draw: st.DrawFn, value: Any) -> Any:
    """Something near ``value``: a number beside it, a text with a letter too many, the other truth."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        near = -value, value + 1, value - 1, value * 1000, value + 0.5, float(value), str(value)
        return draw(st.sampled_from(near))
    if isinstance(value, str):
        at, letter = draw(st.integers(0, len(value))), draw(st.sampled_from("x0-.,:=()%[{'\" \t\n"))
        return draw(st.sampled_from((value[:at], value[at:], value[:at] + letter + value[at:], value.upper())))
    return draw(hostile)


@st.composite
def damaged(draw: st.DrawFn, size: int, most: int = 3) -> list[tuple[str, float, bytes]]:
    """Up to ``most`` changes to ``size`` bytes or more, to be made by ``damage``."""
    kinds = st.sampled_from(("flip", "flip", "cut", "insert", "overwrite", "repeat"))
    where, what = st.integers(0, max(size - 1, 0)), st.binary(min_size=1, max_size=9)
    return draw(st.lists(st.tuples(kinds, where, what), min_size=1, max_size=most))


def damage(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    """``content`` with those changes."""
    for kind, at, what in changes:
        at = min(at, max(len(content) - 1, 0))
        rest = content[at:]
        if kind == "flip" and content:
            content = content[:at] + bytes([rest[0] ^ 1 << what[0] % 8]) + rest[1:]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + what + rest
        elif kind == "overwrite":
            content = content[:at] + what + rest[len(what) :]
        elif kind == "repeat":
            content = content[:at] + rest[:40] + rest
    return content


@st.composite
def miswritten(draw: st.DrawFn, words: list[str], most: int = 2) -> list[str]:
    """A command line with up to ``most`` changes, most of them such that it is still understood; what follows --out
    stays where it is."""
    found = list(words)
    for _ in range(draw(st.integers(1, most))):
        kept = {number + 1 for number, word in enumerate(found) if word == "--out"} | {0}
        free = [number for number in range(len(found)) if number not in kept and found[number] != "--out"]
        values = [number for number in free if not found[number].startswith("--") or "=" in found[number]]
        if not values:
            break
        change = draw(st.sampled_from(("like",) * 6 + ("replace", "alter", "drop", "twice", "add")))
        among = values if change in ("like", "alter") else free
        at = among[draw(st.integers(0, len(among) - 1))]
        if change == "like":
            found[at] = draw(_like(found[at]))
        elif change == "replace":
            found[at] = _spelled(draw(hostile))
        elif change == "alter":
            found[at] = draw(_altered(found[at]))
        elif change == "drop":
            del found[at]
        elif change == "twice":
            found.insert(at, found[at])
        else:
            found.append(_spelled(draw(hostile)))
    return found


@st.composite
def _like(draw: st.DrawFn, word: str) -> str:
    """Another word of the kind: a number for a number, a text for a text, any value for that of a name."""
    name, equals, value = word.partition("=")
    if equals:
        return f"{name}={_spelled(draw(st.one_of(hostile, _like(value))))}"
    if word.isdecimal():
        return str(draw(st.sampled_from([number for number in NUMBERS if isinstance(number, int)])))
    try:
        float(word)
    except ValueError:
        return draw(st.sampled_from(TEXTS))
    return str(draw(st.sampled_from(NUMBERS)))


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else str(value)[:2000]

"""The rule of the rooms: who may import whom, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    "errors", "files", "finite", "ranges", "networks", "seeds", "draws", "metric", "key_values", "data_options",
    "own_options", "trust", "registry", "processes", "exporting", "cost", "spaces", "architecture", "methods", "blocks",
    "tasks", "scoring", "results", "conversation", "training.checkpoints", "training.sources", "training.unwrapping",
    "library",
    "searching", "own", "training.attention", "experiment.students", "studies", "experiment", "training",
    "tuner", "strategy", "cli", "__main__",
]  # fmt: skip
"""Rooms, or parts of a room, from the bottom up: each imports itself and what stands before it."""

NNI_ROOMS = {
    "blocks/space.py",
    "blocks/shells.py",
    "blocks/network.py",
    "strategy.py",
    "tuner.py",
    "training/nni_link.py",
    "cli/check.py",
}
"""The last reads configs as nnictl does."""


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at any depth: ``from a import b`` names a.b, too, where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if is_module(name)}
            found |= modules | ({node.module} if len(modules) < len(inner) else set())
    return found


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").exists()


def position(module: str) -> int | None:
    """Where a module of the package (``blocks.space``) stands in ``ORDER``: the longest name that it begins with."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((ORDER.index(name) for name in names if name in ORDER), None)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "nni_blockswap").with_suffix("")).replace("/", ".").removesuffix(".__init__")


SOURCES = sorted((ROOT / "nni_blockswap").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_imports_neither_spaces_nor_trial_and_only_earlier_rooms(path: Path) -> None:
    used = imports(path)
    assert not {name.split(".")[0] for name in used} & {"search_spaces", "trial", "tests"}
    if path == ROOT / "nni_blockswap" / "__init__.py":  # the shop window, which names what stands in any room
        return
    own = position(name_of(path))
    assert own is not None, "give the room its place in ORDER"
    inner = {name.removeprefix("nni_blockswap.") for name in used if name.startswith("nni_blockswap.")}
    assert not {name for name in inner if (at := position(name)) is None or at > own}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nni_is_imported_in_its_rooms_alone(path: Path) -> None:
    uses_nni = any(name.split(".")[0] == "nni" for name in imports(path))
    assert not uses_nni or str(path.relative_to(ROOT / "nni_blockswap")) in NNI_ROOMS


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("torch", "nni", "numpy")
    program = f"import sys, nni_blockswap, nni_blockswap.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_sets_openmp_before_torch_is_there() -> None:
    program = (
        "import os, sys, nni_blockswap.cli as cli\n"
        "try:\n"
        "    cli.main(['--help'])\n"
        "except SystemExit:\n"
        "    print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False PASSIVE"


def test_the_shop_window() -> None:
    import nni_blockswap

    for name in nni_blockswap.__all__:
        assert getattr(nni_blockswap, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = nni_blockswap.nothing


def test_search_is_the_function_whatever_was_imported_before() -> None:
    import nni_blockswap.own
    from nni_blockswap import search

    assert search is nni_blockswap.own.search

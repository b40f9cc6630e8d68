"""The rule of the rooms: who may import whom, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    "errors", "files", "substitutes", "cost", "budget", "tables", "counting", "sampler", "architecture", "searchspace",
    "blocks", "tasks", "proxies", "fast_fisher", "compiled", "cpu_layers", "cuda_graphs", "workers", "scoring",
    "ranking", "journal", "board", "searching", "latency", "rank_study", "sensitivity", "report",
]  # fmt: skip
NNI_ROOMS = {"blocks.py", "strategy.py", "tuner.py", "cli/check.py"}  # the last reads configs as nnictl does


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at any depth, TYPE_CHECKING apart."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT / "nni_blockswap").parts[0].removesuffix(".py")


SOURCES = sorted((ROOT / "nni_blockswap").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_imports_neither_spaces_nor_trial_and_only_earlier_rooms(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"search_spaces", "trial", "tests"}
    if room(path) in ORDER:
        own = ORDER.index(room(path))
        used = {name.split(".")[1] for name in imports(path) if name.startswith("nni_blockswap.")}
        assert not [name for name in used if name not in ORDER or ORDER.index(name) > own]


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
    import nni_blockswap.searching
    from nni_blockswap import search

    assert search is nni_blockswap.searching.search

"""The compiled library: there where a C compiler works, and only there."""

import time

import pytest
import torch

from nni_blockswap.scoring.engines import compiled


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_fisher_information(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    blocks = [
        [torch.randn(shape).to(dtype) for _ in range(2)] for shape in ((5, 6, 7, 4), (3, 40, 1, 9), (64, 8, 8, 8))
    ]
    blocks[2][0] = blocks[2][0].contiguous(memory_format=torch.channels_last)
    found = compiled.fisher_information(*zip(*blocks, strict=True))
    expected = [(torch.einsum("nchw,nchw->nc", a.double(), g.double()) ** 2).sum() / (2 * len(a)) for a, g in blocks]
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([one.item() for one in expected], rel=1e-5)  # sums in float32


@pytest.mark.usefixtures("c_compiler")
def test_both_batch_norms_are_there_where_a_compiler_is() -> None:
    assert compiled.library(torch.float32) is not None
    assert compiled.library(torch.bfloat16) is not None
    assert compiled.library(torch.float64) is None


def test_the_compilers_name_may_have_options(monkeypatch: pytest.MonkeyPatch, c_compiler: str) -> None:
    monkeypatch.setenv("CC", f"{c_compiler} -g0")
    assert compiled.library.__wrapped__(torch.float32) is not None


def test_where_no_folder_can_be_made_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    assert compiled.library.__wrapped__(torch.float32) is None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_that_works_there_is_no_library(monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    monkeypatch.setenv("CC", compiler)
    assert compiled.library.__wrapped__(torch.float32) is None


def test_a_compiler_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "sh -c 'sleep 60; true'")  # a child of its own is asleep, as a compiler's would be
    monkeypatch.setattr(compiled, "PATIENCE", 0.2)
    start = time.monotonic()
    assert compiled.library.__wrapped__(torch.float32) is None
    assert time.monotonic() - start < 30

"""A library of a network and of batches that a program holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nni_blockswap as bs
from nni_blockswap.errors import BlockSwapError
from nni_blockswap.files import read_json
from tests.test_own import EXAMPLE, QUICK, loader, network

TAUGHT = {"steps": 3, "lr": 5e-4, "batch_size": 8, "held_out": 8, "device": "cpu", "on_progress": lambda progress: None}


def test_a_library_of_a_network_that_a_program_holds(tmp_path: Path) -> None:
    """Taught, searched, and where the student starts: the network's own weights and those that were learned."""
    model = network()
    space = bs.swap_blocks(model, EXAMPLE, extra=["W(1/2)"])
    folder = str(tmp_path / "lib")
    library = bs.build_library(space, loader(), out=folder, **TAUGHT)
    assert all(errors["S"].value == 0 for errors in library.errors.values())
    best = bs.search(space, loader(), budget="70%", proxy="library", library=folder).best
    sums = [
        sum(library.errors[label][name].value for label, name in one.choices.items())
        for one in bs.search(space, loader(), budget="70%", **QUICK)
    ]
    assert best.score is not None
    assert best.score <= min(sums)
    student = best.build()
    kind = {"epochs": 1, "limit_steps": 1, "lr": 1e-12, "weight_decay": 0.0, "temperature": 2.0}
    bs.distill(student, model, loader(), loader(), init=f"library={folder}", out=tmp_path / "student", **kind)
    by = read_json(tmp_path / "student" / "settings.json")
    usual = {"beta": 0.0, "kd": 1.0, "schedule": "cosine_steps", "temperature": 2.0, "lr": 1e-12}  # as a trial has it
    assert {name: by[name] for name in usual} == usual
    swapped = {label: name for label, name in best.choices.items() if name != "S"}
    assert swapped
    in_hand = bs.assemble(best, model.state_dict(), bs.Library.load(folder))  # for a training loop of one's own
    for weight, trained in zip(in_hand.parameters(), student.parameters(), strict=True):
        assert torch.allclose(weight, trained, atol=1e-6)
    learned = [value for label, name in swapped.items() for value in library.weights(label, name).values()]
    own = list(model.parameters())
    for weight in student.parameters():
        assert any(weight.shape == one.shape and torch.allclose(weight, one, atol=1e-6) for one in [*learned, *own])


def test_a_library_goes_on_where_it_was_and_knows_its_network(tmp_path: Path) -> None:
    def taught(model: nn.Module, steps: int) -> Any:
        return bs.build_library(bs.swap_blocks(model, EXAMPLE), loader(), out=tmp_path, **{**TAUGHT, "steps": steps})

    first = taught(network(), 2)
    assert taught(network(), 2).digest == first.digest
    assert taught(network(), 4).digest != first.digest
    other = network()
    nn.init.ones_(other[-1].weight)
    with pytest.raises(BlockSwapError, match="holds another library"):
        taught(other, 4)
    with pytest.raises(BlockSwapError, match="a library has no setting 'samples'; it has batch_size,"):
        bs.build_library(bs.swap_blocks(other, EXAMPLE), loader(), out=tmp_path, samples=3)

"""Somebody's checkpoints: what they are wrapped in comes off, what does not fit is named."""

from typing import Any

import pytest
import torch
from torch import nn

from nni_blockswap.errors import CheckpointError
from nni_blockswap.training.unwrapping import load_weights, weights_of

STATE = nn.Linear(2, 3).state_dict()
OTHER = {name: value + 1 for name, value in STATE.items()}


@pytest.mark.parametrize("prefix", ["", "network.", "model.", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_are_found_in_plain_and_wrapped_checkpoints(prefix: str, wrapped: bool) -> None:
    network = nn.Linear(2, 3)
    state = {prefix + name: value for name, value in network.state_dict().items()}
    found = weights_of({"epoch": 1, "state_dict": state} if wrapped else state)
    assert found.keys() == {"weight", "bias"}
    load_weights(nn.Linear(2, 3), found, "x")


@pytest.mark.parametrize("prefix", ["network.", "model.", "module."])
def test_a_lightning_modules_other_parts_are_left_out(prefix: str) -> None:
    state = {prefix + name: value for name, value in nn.Linear(2, 3).state_dict().items()}
    state["criterion.weight"] = torch.ones(3)
    found = weights_of({"pytorch-lightning_version": "2.0.0", "state_dict": state})
    assert found.keys() == {"weight", "bias"}
    assert weights_of({"state_dict": state}).keys() == state.keys()  # another's plain network may have such names


@pytest.mark.parametrize("content", [[], {}, {"epoch": 3}, {"state_dict": {}}])
def test_a_checkpoint_without_weights_is_refused(content: object) -> None:
    with pytest.raises(CheckpointError, match="holds a state_dict"):
        weights_of(content)


def test_weights_that_do_not_fit_are_named_in_one_sentence() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match=r"'t\.pt' do not fit .*: missing 1\.weight, 1\.bias; unexpected extra;"):
        load_weights(network, {**nn.Sequential(nn.Linear(2, 3)).state_dict(), "extra": torch.zeros(1)}, "t.pt")
    with pytest.raises(CheckpointError, match=r"size mismatch for 1\.weight: .* and 1 more; a teacher is"):
        load_weights(network, nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)).state_dict(), "t.pt")


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"model_state": STATE, "epoch": 3},
        {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}},
        {"model": STATE, "args": {"lr": 0.1}},
        {"network": STATE},
        {"weights": {"module.weight": STATE["weight"], "module.bias": STATE["bias"]}},
        {"state_dict": {f"_orig_mod.module.{name}": value for name, value in STATE.items()}},
        {"state_dict": OTHER, "state_dict_ema": STATE},
        {"model": OTHER, "model_ema": {f"module.{name}": value for name, value in STATE.items()}},
        {"model": OTHER, "ema": {"decay": 0.9, "module": STATE}},
        {"model": STATE, "ema": {"decay": 0.9, "shadow_params": [STATE["weight"]]}},  # no names: of no use
    ],
)
def test_what_programs_wrap_weights_in_comes_off_and_an_average_comes_first(checkpoint: dict[str, Any]) -> None:
    found = weights_of(checkpoint, STATE.keys())
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], value) for name, value in STATE.items())


def test_a_prefix_that_is_the_networks_own_stays() -> None:
    network = nn.ModuleDict({"model": nn.Linear(2, 3)})
    assert weights_of(network.state_dict(), network.state_dict().keys()).keys() == network.state_dict().keys()
    wrapped = {f"module.{name}": value for name, value in network.state_dict().items()}
    assert weights_of(wrapped, network.state_dict().keys()).keys() == network.state_dict().keys()


def test_the_average_in_a_checkpoint_of_this_project_comes_first() -> None:
    state = {f"network.{name}": value for name, value in OTHER.items()}
    state |= {f"average.module.{name}": value for name, value in STATE.items()}
    state["average.n_averaged"] = torch.tensor(3)
    found = weights_of({"pytorch-lightning_version": "2.6", "state_dict": state}, STATE.keys())
    assert found.keys() == STATE.keys()
    assert torch.equal(found["weight"], STATE["weight"])


def test_what_a_checkpoint_holds_instead_is_named() -> None:
    with pytest.raises(CheckpointError, match="from parameter names to tensors; this one holds epoch, optimizer"):
        weights_of({"epoch": 3, "optimizer": {"lr": 0.1}})


def test_weights_that_are_no_numbers_are_refused() -> None:
    spoilt = {**STATE, "bias": torch.tensor([1.0, float("nan"), 0.0])}
    with pytest.raises(CheckpointError, match=r"'t\.pt' are not all finite numbers: bias\."):
        load_weights(nn.Linear(2, 3), spoilt, "t.pt")

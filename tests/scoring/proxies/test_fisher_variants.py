"""Fisher potential summed in other ways, from the same information by hand."""

import math

import pytest
import torch

from nni_blockswap.scoring.proxies import make_proxy, mean_score
from tests.scoring.test_proxies import Anything, covering, fisher_by_hand, frozen_copy

CHANNELS = [16, 16, 32, 32, 64, 64]
"""Of WRN-16-1's six blocks."""


@pytest.mark.parametrize("row", [0, 5, 9])
def test_variants_are_sums_of_equation_2(super_network, batch, row) -> None:
    choices = covering(super_network)[row]
    super_network.requires_grad_(False).select(choices)
    delta = fisher_by_hand(frozen_copy(super_network, choices), batch)
    by_channel, by_log, by_draw = (
        make_proxy(name).measure(super_network, Anything(), batch)
        for name in ("fisher_channel", "fisher_log", "fisher_draws")
    )
    assert by_channel.blocks == pytest.approx([d / c for d, c in zip(delta, CHANNELS, strict=True)], rel=1e-6)
    assert by_channel.value == pytest.approx(sum(d / c for d, c in zip(delta, CHANNELS, strict=True)), rel=1e-6)
    assert by_log.value == pytest.approx(math.log(math.prod(delta)) / 6, rel=1e-6)
    assert by_draw.value == pytest.approx(math.log(sum(delta)), rel=1e-6)


def test_a_mean_over_draws_is_one_of_logarithms(super_network, batch) -> None:
    super_network.requires_grad_(False)
    plain, logs = [], []
    for choices in covering(super_network)[:2]:  # two architectures stand for two draws
        super_network.select(choices)
        plain.append(make_proxy("fisher").measure(super_network, Anything(), batch).value)
        logs.append(make_proxy("fisher_draws").measure(super_network, Anything(), batch))
    assert mean_score(logs).value == pytest.approx(math.log(math.sqrt(plain[0] * plain[1])))


def test_a_block_without_information_is_left_out_of_the_logarithms(super_network, batch) -> None:
    choices = covering(super_network)[0]
    super_network.requires_grad_(False).select(choices)
    last = list(super_network.blocks()[2].active_branch().parameters())[-1]
    before = last.detach().clone()
    try:
        with torch.no_grad():
            last.zero_()  # the branch adds nothing
        delta = make_proxy("fisher").measure(super_network, Anything(), batch).blocks
        found = make_proxy("fisher_log").measure(super_network, Anything(), batch)
    finally:
        with torch.no_grad():
            last.copy_(before)
    assert delta[2] == found.blocks[2] == 0
    assert found.value == pytest.approx(sum(math.log(d) for i, d in enumerate(delta) if i != 2) / 5)

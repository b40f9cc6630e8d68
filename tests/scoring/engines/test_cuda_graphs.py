"""Candidates as replays of recordings: what is recorded and when it is valid, on any machine; CUDA graphs on a GPU."""

import pytest
import torch

from nni_blockswap.scoring.engines import cuda_graphs
from nni_blockswap.scoring.engines.chain import FisherChain
from nni_blockswap.scoring.engines.cuda_graphs import CudaRecorder, GraphedFisherChain, WhileRecordable, graphed
from nni_blockswap.scoring.machine import autocast
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.tasks.classification import Classification
from tests.scoring.engines.test_chain import SPACES, WRN, batch, covering, super_network


class Rerun:
    """Runs steps anew at each replay, and refuses what a CUDA graph would do wrong.

    The recordings of a place share their memory: a replay must find there what the step before it left.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self._memory = {}

    def __call__(self, place, steps):
        self.recorded += 1
        return [self._replay(place, steps, position) for position in range(len(steps))]

    def _replay(self, place, steps, position):
        def replay() -> None:
            given = None
            if position:
                owner, given = self._memory[place]
                assert owner is steps, "another recording has been replayed there since"
            result = steps[position](given)
            if position == 0:
                self._memory[place] = steps, result

        return replay


@SPACES
def test_replays_equal_the_plain_way_on_every_substitute(space) -> None:
    network, data = super_network(space, torch.float64), batch(space, torch.float64)
    fast = GraphedFisherChain(super_network(space, torch.float64), [data], Rerun())
    for choices in covering(network):
        network.select(choices)
        plain = make_proxy("fisher").measure(network, Classification(), data)
        # The same sums in another order: some hundred roundings of 1e-16 each.
        assert fast.measure(choices).blocks == pytest.approx(plain.blocks, rel=1e-11)


def test_replays_follow_minibatches_and_shared_blocks() -> None:
    network, (images, labels) = super_network(WRN, torch.float64), batch(WRN, torch.float64)
    data = [(images, labels), (images.flip(0) + 1, labels.roll(1))]
    chain = FisherChain(network, Classification(), data)
    fast = GraphedFisherChain(super_network(WRN, torch.float64), data, Rerun())
    first, second = covering(network)[:2]
    half = {label: (first if label < "block_03" else second)[label] for label in first}
    for choices, index in [(first, 0), (half, 0), (first, 0), (first, 1), (half, 1), (second, 0), (second, 0)]:
        assert fast.measure(choices, index).blocks == pytest.approx(chain.measure(choices, index).blocks, rel=1e-11)


def test_each_pair_is_recorded_once_and_only_if_needed() -> None:
    network, record = super_network(WRN, torch.float64), Rerun()
    fast = GraphedFisherChain(network, [batch(WRN, torch.float64)], record)
    first, second = covering(network)[:2]
    for choices in (first, second, first, second):
        fast.measure(choices)
    blocks = len(network.blocks())
    assert record.recorded == 1 + 2 * blocks  # the head; covering's rows differ in every block


class Broken:
    """A driver that refuses to capture."""

    def __init__(self, device: torch.device) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand forty more lines")


class Idle:
    """Captures that do nothing."""

    def __init__(self, device: torch.device) -> None:
        pass

    def __call__(self, place, steps):
        return [lambda: None for _ in steps]


@pytest.mark.parametrize(
    ("recorder", "message"),
    [
        (Broken, r"not used: operation not permitted when stream is capturing\. Scores are the same and take longer"),
        (Idle, r"not used: they score nan where it is "),
    ],
)
def test_graphs_that_do_not_work_are_told_and_not_used(monkeypatch, recorder, message: str) -> None:
    monkeypatch.setattr(cuda_graphs, "CudaRecorder", recorder)
    network, data = super_network(WRN, torch.float64), [batch(WRN, torch.float64)]
    chain = FisherChain(network, Classification(), data)
    with pytest.warns(UserWarning, match=message):
        assert graphed(chain, network, data) is chain


class Unrecordable(Rerun):
    """A driver that fails at some recording after the first candidate's."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()

    def __call__(self, place, steps):
        if self.recorded == 20:
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().__call__(place, steps)


def test_what_cannot_be_recorded_later_is_scored_the_plain_way(monkeypatch) -> None:
    monkeypatch.setattr(cuda_graphs, "CudaRecorder", Unrecordable)
    network, data = super_network(WRN, torch.float64), [batch(WRN, torch.float64)]
    fast = graphed(FisherChain(network, Classification(), data), network, data)
    plain = FisherChain(super_network(WRN, torch.float64), Classification(), data)
    rows = covering(network)[:4]
    with pytest.warns(UserWarning, match="CUDA graphs are not used: operation not permitted") as told:
        found = [fast.measure(choices).blocks for choices in rows]
    assert len(told) == 1
    for blocks, choices in zip(found, rows, strict=True):
        assert blocks == pytest.approx(plain.measure(choices).blocks, rel=1e-11)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float64", "float32", "bf16"])
@SPACES
def test_cuda_graphs_equal_the_chain(space, precision: str) -> None:
    # Needs a CUDA device. The same kernels on the same numbers; float atomics may add in another order.
    tolerance = {"float64": 1e-9, "float32": 1e-2, "bf16": 5e-2}[precision]
    device = torch.device("cuda")
    dtype = torch.float64 if precision == "float64" else torch.float32
    images, labels = batch(space, dtype)
    data = [(images.to(device), labels.to(device))]
    network = super_network(space, dtype).to(device)
    with autocast(device, precision):
        chain = FisherChain(network, Classification(), data)
        fast = GraphedFisherChain(network, data, CudaRecorder(device))
        candidates = covering(network)
        for choices in [*candidates, *candidates[::-1]]:  # the second time nothing is recorded
            assert fast.measure(choices).value == pytest.approx(chain.measure(choices).value, rel=tolerance)


@pytest.mark.gpu
def test_a_gpu_scores_from_graphs(recwarn) -> None:
    # Needs a CUDA device.
    device = torch.device("cuda")
    images, labels = batch(WRN, torch.float32)
    data = [(images.to(device), labels.to(device))]
    network = super_network(WRN, torch.float32).to(device)
    fast = graphed(FisherChain(network, Classification(), data), network, data)
    assert isinstance(fast, WhileRecordable)
    fast.measure(covering(network)[0])
    assert not recwarn

"""The plain way, for any proxy on any space and task: select an architecture in the super-network, and measure it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.draws import drawn_alike
from nni_blockswap.scoring.engines.base import Measure, Work
from nni_blockswap.scoring.engines.buffers import telling_buffers
from nni_blockswap.scoring.machine import autocast
from nni_blockswap.scoring.proxies import Score, in_numbers, mean_score

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4  # the paper's recipe (section 5), for scores after training


class Plain:
    """In this process alone."""

    name = "plain"
    about = "network by network"
    parallel = False

    def suits(self, work: Work) -> bool:
        return True

    def start(self, work: Work) -> Callable[[], Measure]:
        return lambda: lambda choices: measure(work, work.network, choices)


PLAIN = Plain()


def measure(work: Work, network: BlockSpace, choices: Mapping[str, str]) -> Score:
    """Mean score of one architecture over the minibatches; the network's weights are left as they were."""
    network.select(choices)
    with _as_it_was(network, weights=bool(work.training)), drawn_alike(work.device):
        if work.training:
            _train(work, network)
        if not work.proxy.needs_weight_gradients:
            network.requires_grad_(False)
        scores = []
        for batch in work.measured:
            with autocast(work.device, work.precision):
                scores.append(in_numbers(work.proxy.measure(network, work.task, batch), work.proxy.name))
    return mean_score(scores)


@contextmanager
def _as_it_was(network: BlockSpace, *, weights: bool) -> Iterator[None]:
    """Put back which weights have gradients, buffers, and where asked for the active ``weights`` themselves.

    Running statistics may move: in training mode nothing depends on them.
    """
    frozen = [weight for weight in network.parameters() if not weight.requires_grad]
    saved = [(weight, weight.detach().clone()) for weight in (network.active_parameters() if weights else [])]
    buffers = telling_buffers(network)
    try:
        yield
    finally:
        network.requires_grad_(True)
        for weight in frozen:
            weight.requires_grad_(False)
        with torch.no_grad():
            for weight, before in saved:
                weight.copy_(before)
        for buffer in buffers:
            buffer.put_back()


def _train(work: Work, network: BlockSpace) -> None:
    optimiser = torch.optim.SGD(
        network.active_parameters(), LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    for batch in work.training:
        with autocast(work.device, work.precision):
            loss = work.task.loss(network, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

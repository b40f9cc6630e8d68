"""The fast way to Fisher potential: equal to the plain one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.scoring.engines import chain, choose, described
from nni_blockswap.scoring.engines.chain import FisherChain, is_chain
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.scoring.scorer import Scorer
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.classification import Classification
from search_spaces.resnet import ResNetSpace
from search_spaces.wide_resnet import WideResNetSpace

WRN = ("search_spaces.wide_resnet:WideResNetSpace", {"depth": 16, "width": 1, "in_channels": 1, "image_size": 8})
RESNET = ("search_spaces.resnet:ResNetSpace", {"depth": 18, "num_classes": 10, "image_size": 32, "late_width": 0.5})
SPACES = pytest.mark.parametrize("space", [WRN, RESNET], ids=["wrn", "resnet"])


def scorer(space=WRN, **settings: object) -> Scorer:
    given = {"batch_size": 16, "device": "cpu", "processes": 1, **settings}
    fixed = ScoreSettings(space=space[0], space_args=space[1], data="digits", **given)
    return Scorer(fixed, make_task("digits", None, image_size=8), make_proxy("fisher"))


def covering(space: BlockSpace) -> list[dict[str, str]]:
    """As few architectures as hold every candidate of every block between them."""
    blocks = space.blocks()
    return [
        {block.label: block.names[(row + 5 * position) % len(block.names)] for position, block in enumerate(blocks)}
        for row in range(max(len(block.names) for block in blocks))
    ]


def batch(space, precision: torch.dtype, count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    channels, side = (1, 8) if space is WRN else (3, 32)
    images = torch.randn(count, channels, side, side, generator=generator).to(precision)
    return images, torch.randint(10, (count,), generator=generator)


def super_network(space, precision: torch.dtype) -> BlockSpace:
    with seeded(5):
        network = (WideResNetSpace if space is WRN else ResNetSpace)(**space[1]).to(precision).train()
    return network.requires_grad_(False)


@SPACES
def test_chain_equals_the_plain_way_in_float64_on_every_substitute(space) -> None:
    network, data = super_network(space, torch.float64), batch(space, torch.float64)
    chain = FisherChain(super_network(space, torch.float64), [data])
    for choices in covering(network):
        network.select(choices)
        plain = make_proxy("fisher").measure(network, Classification(), data)
        fast = chain.measure(choices)
        # The same sums in another order: some hundred roundings of 1e-16 each.
        assert fast.blocks == pytest.approx(plain.blocks, rel=1e-11)
        assert fast.value == pytest.approx(plain.value, rel=1e-11)


@SPACES
def test_recomputing_blocks_leaves_scores_to_the_last_bit(space) -> None:
    network, data = super_network(space, torch.float32), batch(space, torch.float32)
    keeping, recomputing = (FisherChain(network, [data], recompute) for recompute in (False, True))
    for choices in covering(network)[:4]:
        assert keeping.measure(choices) == recomputing.measure(choices)


def test_several_minibatches_take_turns() -> None:
    candidates = covering(super_network(WRN, torch.float32))[:3]
    three = scorer(minibatches=3, precision="float64")
    found = dict(three.scores(0, candidates))
    network = three.super_network(0)
    for position, choices in enumerate(candidates):
        assert found[position].blocks == pytest.approx(three.score(network, choices).blocks, rel=1e-11)


class _Skipping(WideResNetSpace):
    """A space whose last block also sees what the first one gave: no chain."""

    def forward(self, images: Tensor) -> Tensor:
        first = self.stage1(self.conv(images))
        x = self.stage3(self.stage2(first)) + F.adaptive_avg_pool2d(first, 2).mean(1, keepdim=True)
        x = self.stage3[-1](x)
        logits: Tensor = self.fc(self.pool(self.relu(self.bn(x))).flatten(1))
        return logits


class _PastTheBlocks(WideResNetSpace):
    """A space whose head also sees what came before the first block: blocks in a chain, and yet no chain."""

    def forward(self, images: Tensor) -> Tensor:
        first = self.conv(images)
        x = self.pool(self.relu(self.bn(self.stage3(self.stage2(self.stage1(first))))))
        logits: Tensor = self.fc(x.flatten(1)) + first.mean((1, 2, 3))[:, None]
        return logits


def test_only_chains_go_the_fast_way(monkeypatch) -> None:
    images = torch.randn(2, 1, 8, 8)
    assert is_chain(super_network(WRN, torch.float32), images)
    assert is_chain(super_network(WRN, torch.float32).requires_grad_(False), images)
    for trained in (True, False):
        with seeded(0):
            assert not is_chain(_PastTheBlocks(**WRN[1]).train().requires_grad_(trained), images)
    with seeded(0):
        skipping = _Skipping(**WRN[1])
    assert not is_chain(skipping.train(), images)

    def told(judge: Scorer) -> str:
        work = judge.work(0)
        return described(choose(work), work)

    assert told(scorer(precision="float64")) == "chain (block by block, what two candidates share once)"
    assert choose(scorer(precision="float32").work(0)).name == "cpu-layers"
    for proxy in ("grad_norm", "l2_norm", "accuracy"):
        judge = scorer()
        judge.proxy = make_proxy(proxy)
        assert told(judge).startswith(f"plain (network by network, as '{proxy}' is measured")
    assert told(scorer(train_minibatches=2)) == "plain (network by network, as scores are taken after training)"
    monkeypatch.setattr(chain, "is_chain", lambda network, images: False)
    assert told(scorer()).startswith("plain (network by network, as the blocks do not run one after the other")


def test_blocks_forward_is_given_back() -> None:
    network = super_network(WRN, torch.float32)
    FisherChain(network, [batch(WRN, torch.float32)]).measure(covering(network)[0])
    assert not any("forward" in vars(block) for block in network.blocks())
    assert is_chain(network, torch.randn(2, 1, 8, 8))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_scores() -> None:
    # Needs a CUDA device. float64 there and here: only the order of sums differs.
    candidates = covering(super_network(WRN, torch.float32))
    here = dict(scorer(precision="float64").scores(0, candidates))
    there = dict(scorer(precision="float64", device="cuda").scores(0, candidates))
    for position, score in here.items():
        assert there[position].blocks == pytest.approx(score.blocks, rel=1e-9)

"""The fast way to Fisher potential: equal to the plain one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.scoring.engines import base, choose, described
from nni_blockswap.scoring.engines.chain import FisherChain
from nni_blockswap.scoring.engines.feeding import feeding
from nni_blockswap.scoring.engines.links import links
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.scoring.proxies.fisher import FisherPotential
from nni_blockswap.scoring.scorer import Scorer
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.classification import Classification
from search_spaces.resnet import ResNetSpace
from search_spaces.wide_resnet import WideResNetSpace

WRN = ("search_spaces.wide_resnet:WideResNetSpace", {"depth": 16, "width": 1, "in_channels": 1, "image_size": 8})
RESNET = ("search_spaces.resnet:ResNetSpace", {"depth": 18, "num_classes": 10, "image_size": 32, "late_width": 0.5})
FISHER = FisherPotential()
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
    chain = FisherChain(super_network(space, torch.float64), Classification(), [data])
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
    keeping, recomputing = (FisherChain(network, Classification(), [data], recompute) for recompute in (False, True))
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


class _ChangedInPlace(WideResNetSpace):
    """A space that rectifies what a block gave before the next one sees it, in the same tensor."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.conv(images)).relu_()))
        logits: Tensor = self.fc(self.pool(self.relu(self.bn(x))).flatten(1))
        return logits


class _Deep(WideResNetSpace):
    """A chain whose head also sees what its first stage gave."""

    def forward(self, images: Tensor) -> Tensor:
        first = self.stage1(self.conv(images))
        x = self.stage3(self.stage2(first))
        logits: Tensor = self.fc(self.pool(self.relu(self.bn(x))).flatten(1)) + first.square().mean((1, 2, 3))[:, None]
        return logits


def fed(network: BlockSpace) -> tuple[int, ...]:
    """The links, here the blocks, that feed the head of a network for WRN's images."""
    data = batch(WRN, torch.float32)
    return feeding(network, Classification(), data, links(network, Classification(), data))


def test_only_chains_go_the_fast_way(monkeypatch) -> None:
    assert fed(super_network(WRN, torch.float32)) == (5,)
    for space in (_PastTheBlocks, _Skipping, _ChangedInPlace):
        for trained in (True, False):
            with seeded(0):
                assert fed(space(**WRN[1]).train().requires_grad_(trained)) == ()

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
    asked = list[object]()
    monkeypatch.setattr(base, "feeding", lambda *given: asked.append(given) or ())
    assert told(scorer()).startswith("plain (network by network, as the blocks do not run one after the other")
    assert len(asked) == 1  # all engines, and the sentence, know it from one look


@pytest.mark.parametrize("proxy", ["fisher_channel", "fisher_log", "fisher_draws"])
def test_what_is_made_of_fisher_information_goes_the_fast_way(proxy: str) -> None:
    judge = scorer(precision="float64", minibatches=2)
    judge.proxy = make_proxy(proxy)
    candidates = covering(super_network(WRN, torch.float32))[:3]
    assert choose(judge.work(0)).name == "chain"
    found = dict(judge.scores(0, candidates))
    network = judge.super_network(0)
    for position, choices in enumerate(candidates):
        plain = judge.score(network, choices)
        assert (found[position].value, *found[position].blocks) == pytest.approx(
            (plain.value, *plain.blocks), rel=1e-10
        )


def test_gradients_add_where_a_block_feeds_the_next_and_the_head() -> None:
    with seeded(5):
        network = _Deep(**WRN[1]).double().train()
    data = batch(WRN, torch.float64)
    assert fed(network.float()) == (1, 5)
    chain = FisherChain(network.double(), Classification(), [data])
    for choices in covering(network):
        network.select(choices)
        plain = make_proxy("fisher").measure(network, Classification(), data)
        assert chain.measure(choices).blocks == pytest.approx(plain.blocks, rel=1e-11)


def test_blocks_forward_is_given_back() -> None:
    network = super_network(WRN, torch.float32)
    FisherChain(network, Classification(), [batch(WRN, torch.float32)]).measure(covering(network)[0])
    assert not any("forward" in vars(block) for block in network.blocks())
    assert fed(network) == (5,)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_scores() -> None:
    # Needs a CUDA device. float64 there and here: only the order of sums differs.
    candidates = covering(super_network(WRN, torch.float32))
    here = dict(scorer(precision="float64").scores(0, candidates))
    there = dict(scorer(precision="float64", device="cuda").scores(0, candidates))
    for position, score in here.items():
        assert there[position].blocks == pytest.approx(score.blocks, rel=1e-9)

"""Proxies against independent slow computations; and what every proxy has to hold."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.shells import PreActivationBlock
from nni_blockswap.blocks.space import BlockSpace
from nni_blockswap.blocks.substitutes.paper import PUBLISHED_EXTRA
from nni_blockswap.errors import ConfigError
from nni_blockswap.results.ranking import NON_FINITE, Ranking
from nni_blockswap.scoring.proxies import PROXIES, make_proxy
from nni_blockswap.scoring.proxies.fisher import fisher_information
from nni_blockswap.tasks.classification import Classification
from search_spaces.wide_resnet import WideResNetSpace

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
ARGUMENTS = {"depth": 16, "width": 1, "num_classes": 4, "image_size": 8, "extra": list(PUBLISHED_EXTRA)}
"""Two blocks a stage; the first of the second and third stage changes width and resolution."""


class Anything(Classification):
    """A classification task; these tests bring their own batches."""

    name, num_classes = "anything", 4


def covering(space: BlockSpace) -> list[dict[str, str]]:
    """As few architectures as hold every candidate of every block between them."""
    blocks = space.blocks()
    return [
        {block.label: block.names[(row + 3 * position) % len(block.names)] for position, block in enumerate(blocks)}
        for row in range(max(len(block.names) for block in blocks))
    ]


def frozen_copy(super_network: BlockSpace, choices: dict[str, str]) -> WideResNetSpace:
    """The network of its own that ``choices`` describe, with the super-network's weights."""
    network = Architecture.from_choices(SPACE, choices, ARGUMENTS).build().double().train()
    state = {}
    for name, value in super_network.state_dict().items():
        head, branch, tail = name.partition(".branch.")
        if not branch:
            state[name] = value
        else:
            label = super_network.get_submodule(head).label
            candidate, _, rest = tail.partition(".")
            if candidate == choices[label]:
                state[f"{head}.branch.{rest}"] = value
    network.load_state_dict(state, strict=True)
    return network


def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """BN in training mode, from its definition."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    scale, shift = norm.weight.view(1, -1, 1, 1), norm.bias.view(1, -1, 1, 1)
    return (x - mean) / (variance + 1e-5) ** 0.5 * scale + shift


def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return nn.functional.conv2d(x, layer.weight, None, layer.stride, layer.padding, groups=layer.groups)


def plain_forward(network: WideResNetSpace, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what leaves the last convolution of each branch, written out from the paper's description."""
    x, outputs = conv(images, network.conv), []
    for block in [module for module in network.modules() if isinstance(module, PreActivationBlock)]:
        activated = normalised(x, block.bn).clamp(min=0)
        a = activated
        for layer in block.branch:
            if isinstance(layer, nn.Conv2d):
                a = conv(a, layer)
            elif isinstance(layer, nn.BatchNorm2d):
                a = normalised(a, layer)
            else:
                a = a.clamp(min=0)
        a.retain_grad()
        outputs.append(a)
        x = a + (x if block.shortcut is None else conv(activated, block.shortcut))
    features = normalised(x, network.bn).clamp(min=0).mean((2, 3))
    return features @ network.fc.weight.T + network.fc.bias, outputs


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, from its definition."""
    picked = [logits[n, label] - logits[n].exp().sum().log() for n, label in enumerate(labels.tolist())]
    return -torch.stack(picked).mean()


def fisher_by_hand(network: WideResNetSpace, batch: tuple[Tensor, Tensor]) -> list[float]:
    """Equations (2) and (3), sum by sum, after a full backward pass."""
    images, labels = batch
    logits, outputs = plain_forward(network, images)
    plain_loss(logits, labels).backward()
    information = []
    for a in outputs:
        total = 0.0
        for c in range(a.shape[1]):
            delta_c = 0.0
            for n in range(len(a)):
                delta_c += (a[n, c] * a.grad[n, c]).sum().item() ** 2
            total += delta_c / (2 * len(a))
        information.append(total)
    return information


def test_fisher_potential_is_equation_2_for_every_substitute_of_every_block(super_network, batch) -> None:
    proxy = make_proxy("fisher")
    super_network.requires_grad_(False)
    architectures = covering(super_network)
    for block in super_network.blocks():
        assert {choices[block.label] for choices in architectures} == set(block.names)
    for choices in architectures:
        super_network.select(choices)
        score = proxy.measure(super_network, Anything(), batch)
        expected = fisher_by_hand(frozen_copy(super_network, choices), batch)
        assert score.blocks == pytest.approx(expected, rel=1e-6), choices
        assert score.value == pytest.approx(sum(expected), rel=1e-6)


def test_fisher_potential_in_float32_keeps_five_digits(super_network, batch) -> None:
    # A sum over 5 x 64 positions of rounding errors of 6e-8, through six normalised blocks forward and back: below 1e-5
    # where nothing cancels; each block's sum of squares is dominated by the terms where nothing does.
    rounded = copy.deepcopy(super_network).float().requires_grad_(False)
    super_network.load_state_dict(rounded.state_dict())  # float64 arithmetic on the same weights
    super_network.requires_grad_(False)
    for choices in covering(super_network):
        super_network.select(choices)
        rounded.select(choices)
        exact = make_proxy("fisher").measure(super_network, Anything(), (batch[0].float().double(), batch[1]))
        found = make_proxy("fisher").measure(rounded, Anything(), (batch[0].float(), batch[1]))
        assert found.blocks == pytest.approx(exact.blocks, rel=1e-4)
        assert found.value == pytest.approx(exact.value, rel=1e-4)


def test_fisher_information_of_constant_activations() -> None:
    # Each of N C sums over H W positions is H W a g: Delta = N C (H W a g)^2 / (2 N) = C (H W a g)^2 / 2.
    a, g = torch.full((3, 5, 2, 4), 0.5), torch.full((3, 5, 2, 4), -0.25)
    assert fisher_information([a, a], [g, -g]).tolist() == [5 * (8 * 0.125) ** 2 / 2] * 2


def test_fisher_information_is_summed_in_float32_at_least() -> None:
    a = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    g = torch.full((1, 1, 64, 64), 1.0 + 2**-7, dtype=torch.bfloat16)  # bfloat16 could not hold the sum
    assert fisher_information([a], [g]).item() == pytest.approx((4096 * (1 + 2**-7)) ** 2 / 2, rel=1e-6)
    assert fisher_information([a.double()], [g.double()]).dtype == torch.float64


def test_fisher_information_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 3\) has a gradient \(1, 2, 3, 4\)"):
        fisher_information([torch.zeros(1, 2, 3, 3)], [torch.zeros(1, 2, 3, 4)])


def test_grad_norm_is_the_sum_of_absolute_gradients(super_network, batch) -> None:
    for choices in covering(super_network)[::6]:
        network = frozen_copy(super_network, choices)
        plain_loss(plain_forward(network, batch[0])[0], batch[1]).backward()
        expected = sum(float(weight.grad.abs().sum()) for weight in network.parameters())
        super_network.requires_grad_(True).select(choices)
        assert make_proxy("grad_norm").measure(super_network, Anything(), batch).value == pytest.approx(expected)


def test_l2_norm_is_the_sum_of_squared_weights(super_network, batch) -> None:
    for choices in covering(super_network)[::6]:
        expected = sum((weight**2).sum().item() for weight in frozen_copy(super_network, choices).parameters())
        super_network.select(choices)
        assert make_proxy("l2_norm").measure(super_network, Anything(), batch).value == pytest.approx(expected)


def test_accuracy_counts_hits(super_network, batch) -> None:
    images, labels = batch
    for choices in covering(super_network)[::6]:
        logits, _ = plain_forward(frozen_copy(super_network, choices), images)
        hits = sum(row.index(max(row)) == label for row, label in zip(logits.tolist(), labels.tolist(), strict=True))
        super_network.select(choices)
        assert make_proxy("accuracy").measure(super_network, Anything(), batch).value == pytest.approx(hits / 5)


def test_accuracy_needs_classes(super_network, batch) -> None:
    class Boxes:
        name = "boxes"

    with pytest.raises(ConfigError, match="'accuracy' needs a classification task; 'boxes' is none"):
        make_proxy("accuracy").measure(super_network, Boxes(), batch)  # type: ignore[arg-type]


def test_an_unknown_proxy_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no proxy 'magic'; choose from fisher, grad_norm, l2_norm, accuracy, "):
        make_proxy("magic")


class TestContract:
    """One set of cases over every proxy."""

    @pytest.fixture(params=sorted(PROXIES))
    def proxy(self, request):
        return make_proxy(request.param)

    @pytest.fixture
    def network(self, super_network, proxy) -> BlockSpace:
        super_network.select(covering(super_network)[4])
        return super_network.requires_grad_(proxy.needs_weight_gradients)

    def test_finite_deterministic_and_true_to_its_terms(self, proxy, network, batch) -> None:
        first, second = (proxy.measure(network, Anything(), batch) for _ in range(2))
        assert first == second
        assert math.isfinite(first.value)
        if first.blocks:
            assert len(first.blocks) == len(network.blocks())
            assert sum(first.blocks) == pytest.approx(first.value)

    def test_weights_stay_as_they_were(self, proxy, network, batch) -> None:
        before = [weight.detach().clone() for weight in network.parameters()]
        proxy.measure(network, Anything(), batch)
        assert all(torch.equal(weight, old) for weight, old in zip(network.parameters(), before, strict=True))
        assert all(weight.grad is None for weight in network.parameters())
        assert not any(block.probe._forward_hooks for block in network.blocks())

    def test_declares_what_it_is(self, proxy) -> None:
        assert PROXIES[proxy.name] is type(proxy)
        assert isinstance(proxy.higher_is_better, bool)
        assert isinstance(proxy.needs_weight_gradients, bool)

    def test_a_score_that_is_no_number_is_flagged_and_ranked_last(self, proxy, network, batch, tmp_path) -> None:
        if proxy.name in ("params", "macs"):
            pytest.skip("a count is always a number")
        good = proxy.measure(network, Anything(), batch)
        broken = network.blocks()[2].active_branch().conv1.weight
        before = broken.detach().clone()
        with torch.no_grad():
            broken.view(-1)[0] = math.nan
        try:
            bad = proxy.measure(network, Anything(), batch)
        finally:
            with torch.no_grad():
                broken.copy_(before)
        assert not math.isfinite(bad.value)
        sound, unsound = (
            Architecture.from_choices(SPACE, choices, ARGUMENTS).scored(score.value, {})
            for choices, score in zip(covering(network), (good, bad), strict=False)
        )
        ranking = Ranking.of("400K", [unsound, sound], higher_is_better=proxy.higher_is_better)
        assert ranking.architectures == (sound, unsound)
        ranking.save(tmp_path)
        assert (tmp_path / "ranking.csv").read_text().splitlines()[2].endswith(NON_FINITE)

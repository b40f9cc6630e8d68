"""The fast way to Fisher potential: equal to the plain one; the same whatever the order and the number of processes."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap import compiled, cpu_layers, fast_fisher, scoring
from nni_blockswap.blocks import BlockSpace, seeded
from nni_blockswap.errors import WorkerError
from nni_blockswap.fast_fisher import FisherChain, is_chain
from nni_blockswap.journal import Journal
from nni_blockswap.proxies import Score, make_proxy
from nni_blockswap.scoring import Scorer
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.classification import Classification
from nni_blockswap.workers import score_all
from search_spaces.resnet import ResNetSpace
from search_spaces.wide_resnet import WideResNetSpace

WRN = ("search_spaces.wide_resnet:WideResNetSpace", {"depth": 16, "width": 1, "in_channels": 1, "image_size": 8})
RESNET = ("search_spaces.resnet:ResNetSpace", {"depth": 18, "num_classes": 10, "image_size": 32})
SPACES = pytest.mark.parametrize("space", [WRN, RESNET], ids=["wrn", "resnet"])


def scorer(space=WRN, **settings: object) -> Scorer:
    task = make_task("digits", None, image_size=8)
    return Scorer(*space, task, make_proxy("fisher"), **{"batch_size": 16, "device": "cpu", "processes": 1, **settings})


def covering(space: BlockSpace) -> list[dict[str, str]]:
    """As few architectures as hold every candidate of every block between them."""
    blocks = space.blocks()
    return [
        {block.label: block.names[(row + 5 * position) % len(block.names)] for position, block in enumerate(blocks)}
        for row in range(max(len(block.names) for block in blocks))
    ]


def batch(space, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    channels, side = (1, 8) if space is WRN else (3, 32)
    images = torch.randn(8, channels, side, side, generator=generator).to(precision)
    return images, torch.randint(10, (8,), generator=generator)


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
def test_cpu_layers_keep_every_substitutes_score(space) -> None:
    network, data = super_network(space, torch.float64), batch(space, torch.float64)
    prepared = super_network(space, torch.float64)
    cpu_layers.prepare(prepared, bf16=False)
    chain = FisherChain(prepared, [data])
    for choices in covering(network):
        network.select(choices)
        plain = make_proxy("fisher").measure(network, Classification(), data)
        assert chain.measure(choices).blocks == pytest.approx(plain.blocks, rel=1e-9), (
            choices
        )  # as above, and wider sums


@SPACES
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_rounding_of_the_fast_way(space, precision: str, is_compiled: bool) -> None:
    # A rounding of 6e-8 (bfloat16: 4e-3) in each of up to 70 layers, each of which divides by the deviation of a small
    # sample, down to 8 values in this ResNet. That rankings stand it is shown in benchmarks/results/precision.md.
    tolerance = {"float32": 1e-2, "bf16": 0.6}[precision]
    network, data = super_network(space, torch.float64), batch(space, torch.float32)
    draw = partial(super_network, space, torch.float32)
    measure = scoring.start_fast(draw, [data], precision, False, is_compiled)
    rounded = {name: value.double() for name, value in draw().state_dict().items()}
    network.load_state_dict(rounded)
    ratios = []
    for choices in covering(network):
        network.select(choices)
        plain = make_proxy("fisher").measure(network, Classification(), (data[0].double(), data[1]))
        ratios.append(measure(choices).value / plain.value)
    assert ratios == pytest.approx([1.0] * len(ratios), rel=tolerance)


@pytest.mark.parametrize(
    ("channels", "groups", "stride"), [(16, 8, 1), (16, 4, 2), (32, 32, 2), (64, 16, 1), (8, 4, 1), (24, 12, 1)]
)
def test_wide_groups_compute_the_same(channels: int, groups: int, stride: int) -> None:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=groups, bias=False).double()
    x = torch.randn(2, channels, 6, 6, dtype=torch.float64)
    expected = conv(x)
    cpu_layers.widen_groups(conv, 8)
    assert conv.groups == channels // 8
    assert torch.allclose(conv(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "out", "groups"), [(12, 12, 6), (16, 16, 2), (16, 16, 1), (16, 32, 8)])
def test_groups_that_cannot_be_widened_stay(channels: int, out: int, groups: int) -> None:
    conv = nn.Conv2d(channels, out, 3, groups=groups)
    weight = conv.weight
    cpu_layers.widen_groups(conv, 8)
    assert conv.groups == groups
    assert conv.weight is weight


@pytest.fixture(params=["compiled", "PyTorch's"])
def is_compiled(request: pytest.FixtureRequest) -> bool:
    """Whether BN is compiled for this machine, or runs in PyTorch's kernels as where there is no compiler."""
    if request.param == "compiled" and shutil.which("cc") is None:
        pytest.skip("needs a C compiler: there is no cc")
    return bool(request.param == "compiled")


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(5, 6, 7, 4), (64, 3, 1, 1), (2, 40, 3, 9)])
def test_batch_norm_equals_pytorchs(relu: bool, shape: tuple[int, int, int, int], is_compiled: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(shape[1])
    nn.init.uniform_(norm.weight, -1.5, 1.5)
    nn.init.normal_(norm.bias)
    nn.init.zeros_(norm.weight[:1])
    x = (3 + 2 * torch.randn(shape)).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(x)
    expected_x = x.double().requires_grad_()
    expected = F.batch_norm(expected_x, None, None, norm.weight.double(), norm.bias.double(), training=True)
    expected = expected.relu() if relu else expected
    expected.backward(gradient.double())
    x.requires_grad_()
    norm.requires_grad_(False)
    out = cpu_layers.BatchNorm(norm, relu, is_compiled)(x)
    out.backward(gradient)
    assert torch.allclose(out.double(), expected, atol=2e-6)
    assert torch.allclose(x.grad.double(), expected_x.grad, atol=2e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_in_bfloat16(relu: bool, is_compiled: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(10).requires_grad_(False)
    nn.init.normal_(norm.bias)
    x, gradient = (torch.randn(16, 10, 6, 6).bfloat16() for _ in range(2))  # not in channels_last
    expected_x = x.double().requires_grad_()
    expected = F.batch_norm(expected_x, None, None, norm.weight.double(), norm.bias.double(), training=True)
    expected = expected.relu() if relu else expected
    expected.backward(gradient.double())
    x.requires_grad_()
    out = cpu_layers.BatchNorm(norm, relu, is_compiled)(x)
    out.backward(gradient)
    assert out.dtype == x.grad.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: each result is rounded once, by up to 2^-9 of its size.
    assert torch.allclose(out.double(), expected, rtol=2**-8, atol=1e-5)
    assert torch.allclose(x.grad.double(), expected_x.grad, rtol=2**-8, atol=1e-5)


def test_batch_norm_is_exact_where_a_plain_sum_in_float32_is_not(is_compiled: bool) -> None:
    x = 100 + torch.randn(256, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm2d(1).requires_grad_(False)
    out = cpu_layers.BatchNorm(norm, False, is_compiled)(x.contiguous(memory_format=torch.channels_last))
    expected = (x.double() - x.double().mean()) / (x.double().var(correction=0) + norm.eps).sqrt()
    # At 100 a value is a multiple of 8e-6; scale and shift are rounded alike.
    assert (out - expected).abs().max() < 4e-5


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: there is no cc")
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


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: there is no cc")
def test_both_batch_norms_are_there_where_a_compiler_is() -> None:
    assert compiled.library(torch.float32) is not None
    assert compiled.library(torch.bfloat16) is not None
    assert compiled.library(torch.float64) is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: there is no cc")
def test_the_compilers_name_may_have_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -g0")
    assert compiled.library.__wrapped__(torch.float32) is not None


def test_where_no_folder_can_be_made_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    assert compiled.library.__wrapped__(torch.float32) is None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_that_works_there_is_no_library(monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    monkeypatch.setenv("CC", compiler)
    assert compiled.library.__wrapped__(torch.float32) is None


def test_relu_of_bfloat16_is_pytorchs() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    numbers = every[~every.isnan()]
    assert torch.equal(cpu_layers.relu_(numbers.clone()), numbers.relu())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("nan")])
def test_what_is_not_finite_shows_in_the_score(precision: str, value: float, is_compiled: bool) -> None:
    images, labels = batch(WRN, torch.float32)
    images[0, 0, 3, 3] = value
    measure = scoring.start_fast(
        partial(super_network, WRN, torch.float32), [(images, labels)], precision, False, is_compiled
    )
    assert math.isnan(measure(covering(super_network(WRN, torch.float32))[0]).value)


def test_statistics_are_exact_where_a_plain_sum_in_float32_is_not() -> None:
    x = (100 + torch.randn(256, 1, 32, 32, generator=torch.Generator().manual_seed(0))).to(torch.float32)
    mean, variance = cpu_layers.statistics(x.contiguous(memory_format=torch.channels_last))
    assert mean.item() == pytest.approx(x.double().mean().item(), rel=1e-6)
    assert variance.item() == pytest.approx(x.double().var(correction=0).item(), rel=1e-4)


@SPACES
def test_recomputing_blocks_leaves_scores_to_the_last_bit(space) -> None:
    network, data = super_network(space, torch.float32), batch(space, torch.float32)
    keeping, recomputing = (FisherChain(network, [data], recompute) for recompute in (False, True))
    for choices in covering(network)[:4]:
        assert keeping.measure(choices) == recomputing.measure(choices)


def test_scores_do_not_depend_on_order_processes_or_a_resume() -> None:
    candidates = covering(super_network(WRN, torch.float32))
    alone = dict(scorer().scores(0, candidates))
    assert sorted(alone) == list(range(len(candidates)))
    backwards = dict(scorer().scores(0, candidates[::-1]))
    assert [backwards[len(candidates) - 1 - position] for position in range(len(candidates))] == [
        alone[position] for position in range(len(candidates))
    ]
    resumed = dict(scorer().scores(0, candidates[7:]))
    assert all(alone[position + 7] == score for position, score in resumed.items())
    assert dict(scorer(processes=3).scores(0, candidates)) == alone
    start = partial(_first_here_is_slow, os.getpid())
    many = candidates * 20  # more than this process does before the helper is there
    shared = dict(score_all(start, start(), many, 1))  # slow here, so that the helper takes its part
    assert {pid for score in shared.values() for pid in score.blocks} > {float(os.getpid())}


def _first_here_is_slow(parent: int):
    """Measures nothing but which process it is in; takes its time in the parent."""

    def measure(choices) -> Score:
        if os.getpid() == parent:
            time.sleep(0.5)
        return Score(1.0, (float(os.getpid()),))

    return measure


def _leaving_a_mark(start, mark: Path):
    """What ``start`` gives; each of its scores says that this process took part."""
    measure = start()

    def marked(choices) -> Score:
        mark.touch()
        return measure(choices)

    return marked


def test_helpers_find_the_same_scores_as_this_process(tmp_path: Path) -> None:
    candidates = covering(super_network(WRN, torch.float32))
    network = partial(scoring.draw, *WRN, 0, "float32", torch.device("cpu"))
    data = [batch(WRN, torch.float32)]
    start = partial(
        scoring.start_fast, network, data, "float32", False, scoring.can_compile("float32", torch.device("cpu"))
    )
    mine = start()
    alone = {position: mine(choices) for position, choices in enumerate(candidates)}

    mark = tmp_path / "scored"

    def patient(choices) -> Score:
        time.sleep(0 if mark.exists() else 0.5)  # until the helper has scored, too
        return mine(choices)

    shared = dict(score_all(partial(_leaving_a_mark, start, mark), patient, candidates * 8, 1))
    assert mark.exists()
    assert shared == {position: alone[position % len(candidates)] for position in range(8 * len(candidates))}


def test_several_minibatches_take_turns() -> None:
    candidates = covering(super_network(WRN, torch.float32))[:3]
    three = scorer(minibatches=3, precision="float64")
    found = dict(three.scores(0, candidates))
    network = three.super_network(0)
    for position, choices in enumerate(candidates):
        assert found[position].blocks == pytest.approx(three.score(network, choices).blocks, rel=1e-11)


def _dies(code: int):
    """In a helper: a measure that ends the process."""
    parent = os.getppid()

    def measure(choices) -> Score:
        os.kill(os.getpid(), code)
        raise AssertionError(parent)

    return measure


def test_a_killed_helper_is_told_in_one_sentence_and_keeps_what_was_found(tmp_path) -> None:
    candidates = covering(super_network(WRN, torch.float32)) * 20  # more than there is time for before it dies
    journal = Journal(tmp_path, {})

    def patient(choices) -> Score:
        time.sleep(0.5)
        return Score(1.0)

    def score_and_record() -> None:
        for position, score in score_all(partial(_dies, signal.SIGKILL), patient, candidates, 1):
            journal.add(0, str(position), score)

    with pytest.raises(WorkerError, match=r"a scoring process was killed by signal 9; .* start the same search again"):
        score_and_record()
    journal.close()
    assert len(Journal(tmp_path, {})) == len(journal) > 0


def test_ctrl_c_ends_a_search_and_its_helpers(tmp_path) -> None:
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from tests.test_fast_scoring import covering, scorer, super_network, WRN\n"
        "candidates = covering(super_network(WRN, torch.float32)) * 500\n"
        "for position, score in scorer(processes=2).scores(0, candidates):\n"
        "    print(position, flush=True)\n"
    )
    root = Path(__file__).parents[1]
    search = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert search.stdout is not None
    assert search.stdout.readline().strip().isdigit()
    os.killpg(search.pid, signal.SIGINT)  # as a terminal does: to its whole group
    _, errors = search.communicate(timeout=60)  # returns when no helper holds the pipe any more
    assert errors.count("KeyboardInterrupt") == 1


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


def test_a_space_of_a_script_is_scored_without_helpers_that_could_not_import_it() -> None:
    code = (
        "from search_spaces.wide_resnet import WideResNetSpace\n"
        "class Own(WideResNetSpace):\n"
        "    pass\n"
        "from nni_blockswap import SearchSettings, search\n"
        f"settings = SearchSettings(space='__main__:Own', space_args={WRN[1]!r}, data='digits', budgets=['50%'],\n"
        "    data_options={'image_size': 8}, samples=20, batch_size=16, processes=2, device='cpu')\n"
        "(ranking,) = search(settings)\n"
        "print(len(ranking.architectures))\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-"], input=code, cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "20"


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

    def refuse(*arguments: object) -> None:
        raise AssertionError("the fast way was taken")

    monkeypatch.setattr(scoring, "start_fast", refuse)
    candidates = covering(skipping)[:1]
    for proxy in ("grad_norm", "l2_norm", "accuracy"):
        judge = scorer()
        judge.proxy = make_proxy(proxy)
        list(judge.scores(0, candidates))
    list(scorer(train_minibatches=2).scores(0, candidates))
    monkeypatch.setattr(scoring, "is_chain", lambda network, images: False)
    list(scorer().scores(0, candidates))


def test_blocks_forward_is_given_back() -> None:
    network = super_network(WRN, torch.float32)
    FisherChain(network, [batch(WRN, torch.float32)]).measure(covering(network)[0])
    assert not any("forward" in vars(block) for block in network.blocks())
    assert fast_fisher.is_chain(network, torch.randn(2, 1, 8, 8))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_scores() -> None:
    # Needs a CUDA device. float64 there and here: only the order of sums differs.
    candidates = covering(super_network(WRN, torch.float32))
    here = dict(scorer(precision="float64").scores(0, candidates))
    there = dict(scorer(precision="float64", device="cuda").scores(0, candidates))
    for position, score in here.items():
        assert there[position].blocks == pytest.approx(score.blocks, rel=1e-9)

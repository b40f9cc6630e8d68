"""The scorer: averages, training before scoring, the same scores anywhere, settings that cannot be."""

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import ConfigError, DataError
from nni_blockswap.scoring.engines.plain import measure
from nni_blockswap.scoring.machine import autocast, resolve_device, resolve_precision
from nni_blockswap.scoring.proxies import PROXIES, Proxy, Score, make_proxy, mean_score
from nni_blockswap.scoring.scorer import Scorer, check_fit
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.spaces import NETWORK
from nni_blockswap.tasks import make_task
from nni_blockswap.tasks.classification import Classification, Labelled
from nni_blockswap.tasks.loader import LoaderTask
from search_spaces.wide_resnet import WideResNetSpace

SPACE = "search_spaces.wide_resnet:WideResNetSpace"
ARGUMENTS = {"depth": 10, "width": 1, "in_channels": 1, "image_size": 8}
CANDIDATES = [
    dict(zip(("block_00", "block_01", "block_02"), names, strict=True))
    for names in (("S", "S", "S"), ("G(4)", "B(2)", "BG(2,4)"), ("BG(2,8)", "G(N/2)", "G(N)"), ("G(4)", "S", "B(4)"))
]


def scorer(proxy: str | Proxy = "fisher", **settings: object) -> Scorer:
    given = {"batch_size": 16, "seed": 3, "device": "cpu", "space": SPACE, "space_args": ARGUMENTS, **settings}
    made = make_proxy(proxy) if isinstance(proxy, str) else proxy
    return Scorer(ScoreSettings(data="digits", **given), make_task("digits", None, image_size=8), made)


def scores(init: int = 0, proxy: str = "fisher", candidates=CANDIDATES, **settings: object) -> list[Score]:
    found = dict(scorer(proxy, **settings).scores(init, candidates))
    return [found[position] for position in range(len(candidates))]


def everything() -> str:
    """All digits of what every proxy gives."""
    return str([(score.value, score.blocks) for proxy in sorted(PROXIES) for score in scores(1, proxy)])


def test_the_same_seed_gives_the_same_scores_in_another_process() -> None:
    code = (
        "import torch; torch.set_num_threads(1); from tests.scoring.test_scorer import everything; print(everything())"
    )
    root = Path(__file__).parents[2]
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert other.stdout.strip() == everything()


def test_dropout_does_not_make_scores_depend_on_what_was_scored_before() -> None:
    space_args = {"model": "tests.library.own:Dropping", "input_size": [1, 8, 8]}
    both = [{"block_00": one, "block_01": "S"} for one in ("G(4)", "B(2)")]
    own = {"space": NETWORK, "space_args": space_args}
    forwards, backwards = scores(candidates=both, **own), scores(candidates=both[::-1], **own)
    assert forwards == backwards[::-1]
    torch.manual_seed(1)
    assert scores(candidates=both[1:], **own) == forwards[1:]


class Remembering(nn.Module):
    """Draws from Python and NumPy, and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x * (random.random() + np.random.rand() + self.passes.item())  # noqa: NPY002


def remembering() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), Remembering(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 10, 3, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())  # fmt: skip


def test_what_a_network_draws_or_keeps_does_not_make_scores_depend_on_what_was_scored_before() -> None:
    own = {"space": NETWORK, "space_args": {"model": f"{__name__}:remembering", "input_size": [1, 8, 8]}}
    both = [{"block_00": one, "block_01": "S"} for one in ("G(4)", "B(2)")]
    assert scores(candidates=both, **own) == scores(candidates=both[::-1], **own)[::-1]


@pytest.mark.parametrize("proxy", sorted(set(PROXIES) - {"params", "l2_norm"}))
def test_weights_that_nothing_runs_count_nothing(proxy: str) -> None:
    """But where the weights themselves are what counts."""
    known = []
    for model in ("own", "Idle"):
        space_args = {"model": f"tests.library.own:{model}", "input_size": [1, 8, 8]}
        work = scorer(proxy, space=NETWORK, space_args=space_args).work(0)
        torch.manual_seed(2)
        for name, weight in work.network.named_parameters():
            if "unused" not in name:
                torch.nn.init.normal_(weight, std=0.2)
        known.append(measure(work, work.network, {"block_00": "S", "block_01": "G(4)"}))
    assert known[0] == known[1]


def test_space_and_data_are_of_one_kind() -> None:
    digits, coco = make_task("digits", None, image_size=8), SimpleNamespace(name="coco", num_classes=91)
    with pytest.raises(ConfigError, match="MaskRCNNSpace detect, and digits is a data set for classification"):
        check_fit("search_spaces.mask_rcnn:MaskRCNNSpace", {}, digits, digits.minibatch(2, seed=0))
    with pytest.raises(ConfigError, match="WideResNetSpace classify, and coco is a data set for detection"):
        check_fit(SPACE, ARGUMENTS, coco, ([], []))
    check_fit("search_spaces.mask_rcnn:MaskRCNNSpace", {}, coco, ([], []))


@pytest.mark.parametrize("classes", [5, 1000])
def test_a_head_of_another_number_of_classes_is_refused(classes: int) -> None:
    digits = make_task("digits", None, image_size=8)
    with pytest.raises(ConfigError, match=f"digits has 10 classes and the network {classes}; set num_classes in"):
        check_fit(SPACE, {**ARGUMENTS, "num_classes": classes}, digits, digits.minibatch(2, seed=0))
    coco = SimpleNamespace(name="coco", num_classes=91)
    with pytest.raises(ConfigError, match=f"coco has 91 classes and the network {classes}"):
        check_fit("search_spaces.mask_rcnn:MaskRCNNSpace", {"num_classes": classes}, coco, ([], []))


def test_a_loader_that_was_seen_in_part_may_have_fewer_classes_than_the_network() -> None:
    images, labels = torch.zeros(4, 1, 8, 8), torch.tensor([0, 3, 1, 2])
    task = LoaderTask([(images, labels)])
    check_fit(SPACE, ARGUMENTS, task, (images, labels))
    with pytest.raises(ConfigError, match="loader has 4 classes and the network 3"):
        check_fit(SPACE, {**ARGUMENTS, "num_classes": 3}, task, (images, labels))


@pytest.mark.parametrize("proxy", sorted(PROXIES))
def test_another_draw_or_minibatch_gives_another_score(proxy: str) -> None:
    if proxy not in ("accuracy", "params", "macs"):  # accuracy has few values, and costs are counted
        assert scores(2, proxy) != scores(1, proxy)
    if proxy not in ("l2_norm", "params", "macs"):
        assert scores(1, proxy, seed=4) != scores(1, proxy)


def test_a_score_does_not_depend_on_the_candidates_beside_it() -> None:
    together = scores()
    for position, choices in enumerate(CANDIDATES):
        assert scores(candidates=[choices]) == [together[position]]
    assert scores(candidates=CANDIDATES[::-1]) == together[::-1]


@pytest.mark.parametrize("proxy", sorted(PROXIES))
def test_a_score_is_the_mean_over_minibatches(proxy: str) -> None:
    one = scorer(proxy, minibatches=1, precision="float64")
    three = scorer(proxy, minibatches=3, precision="float64")
    singles = []
    for index in range(3):
        batch = one.task.minibatch(16, seed=3, index=index)
        network = one.super_network(0)
        network.select(CANDIDATES[1])
        network.requires_grad_(one.proxy.needs_weight_gradients)
        singles.append(one.proxy.measure(network, one.task, one.task.to(batch, torch.device("cpu"), torch.float64)))
    ((_, found),) = three.scores(0, CANDIDATES[1:2])
    assert found.value == pytest.approx(sum(single.value for single in singles) / 3, rel=1e-12)
    for block, value in enumerate(found.blocks):
        assert value == pytest.approx(sum(single.blocks[block] for single in singles) / 3, rel=1e-12)


def test_mean_score_is_the_mean_of_each_term() -> None:
    assert mean_score([Score(1.0, (0.25, 0.75)), Score(2.0, (1.25, 0.75))]) == Score(1.5, (0.75, 0.75))
    assert mean_score([Score(1.0), Score(2.0)]) == Score(1.5)


def test_scoring_after_training_equals_a_plain_loop() -> None:
    choices = CANDIDATES[1]
    trained = scorer(train_minibatches=4, precision="float64")
    ((_, found),) = trained.scores(0, [choices])
    with seeded(3 * 1_000_003):
        space = WideResNetSpace(**ARGUMENTS).double()
    network = WideResNetSpace.build(choices, **ARGUMENTS).double().train()
    network.load_state_dict(
        {
            name.replace(f".branch.{candidate}.", ".branch."): value
            for name, value in space.state_dict().items()
            for candidate in [name.split(".branch.")[1].split(".")[0] if ".branch." in name else ""]
            if not candidate or candidate == choices[f"block_{int(name[5]) - 1:02d}"]
        }
    )
    velocity = [torch.zeros_like(weight) for weight in network.parameters()]
    for index in range(3):
        loss = plain_loss(network, trained.task.minibatch(16, seed=3, index=index))
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():  # SGD with the paper's learning rate 0.1, momentum 0.9 and weight decay 5e-4
            for weight, gradient, v in zip(network.parameters(), gradients, velocity, strict=True):
                v.mul_(0.9).add_(gradient + 5e-4 * weight)
                weight.sub_(0.1 * v)
    outputs: list[Tensor] = []
    for block in network.blocks():
        block.branch[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    loss = plain_loss(network, trained.task.minibatch(16, seed=3, index=3))
    expected = [
        ((a * g).sum((2, 3)) ** 2).sum().item() / 32
        for a, g in zip(outputs, torch.autograd.grad(loss, outputs), strict=True)
    ]
    assert found.blocks == pytest.approx(expected, rel=1e-9)
    assert found != next(iter(scorer(precision="float64").scores(0, [choices])))[1]


def plain_loss(network: WideResNetSpace, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(network(batch[0].double()), batch[1])


class DoubledLoss(Classification):
    """The digits, with a loss of their own."""

    def __init__(self) -> None:
        digits = make_task("digits", None, image_size=8)
        self.name, self.num_classes, self.minibatch = digits.name, digits.num_classes, digits.minibatch

    def loss(self, network: torch.nn.Module, batch: Labelled) -> Tensor:
        return 2 * super().loss(network, batch)


class Gives:
    """A proxy whose measure gives something."""

    name, higher_is_better, needs_weight_gradients = "gives", True, False

    def __init__(self, something: object) -> None:
        self.something = something

    def measure(self, network: object, task: object, batch: object) -> Score:
        return self.something  # type: ignore[return-value]


def test_a_proxys_tensors_become_numbers() -> None:
    given = Score(torch.tensor(2.5), (np.float32(1.5), torch.tensor([1])))  # type: ignore[arg-type]
    ((_, found),) = scorer(Gives(given)).scores(0, CANDIDATES[:1])
    assert repr(found) == "Score(value=2.5, blocks=(1.5, 1.0))"


@pytest.mark.parametrize("given", [2.5, None, Score(torch.ones(2)), Score(None), Score(1.0, 2.0)])  # type: ignore[arg-type]
def test_what_is_no_score_is_told(given: object) -> None:
    with pytest.raises(ConfigError, match=r"the proxy 'gives' gave .*; its measure returns Score\(number\)"):
        list(scorer(Gives(given)).scores(0, CANDIDATES[:1]))


def test_a_tasks_own_loss_is_scored() -> None:
    doubled = scorer(precision="float64")
    doubled.task = DoubledLoss()
    found = dict(doubled.scores(0, CANDIDATES))
    for position, single in enumerate(scores(precision="float64")):  # gradients are squared
        assert found[position].blocks == pytest.approx([4 * term for term in single.blocks], rel=1e-9)


def test_the_minibatch_is_augmented_only_if_asked_for() -> None:
    task = make_task("digits", None, image_size=8)
    named = {augment: task.fingerprint(task.minibatch(16, seed=3, augment=augment)) for augment in (True, False)}
    assert named[True] != named[False]
    assert {augment: scorer(augment=augment).fingerprint for augment in (True, False)} == named


@pytest.mark.parametrize("proxy", sorted(PROXIES))
@pytest.mark.parametrize("train_minibatches", [1, 3])
def test_weights_are_left_as_they_were(proxy: str, train_minibatches: int) -> None:
    judge = scorer(proxy, train_minibatches=train_minibatches)
    network = judge.super_network(0)
    before = [weight.detach().clone() for weight in network.parameters()]
    first = judge.score(network, CANDIDATES[1])
    assert all(torch.equal(weight, old) for weight, old in zip(network.parameters(), before, strict=True))
    assert judge.score(network, CANDIDATES[1]) == first


def test_the_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    scores()
    assert torch.equal(torch.rand(3), expected)


class HalfFrozen(WideResNetSpace):
    """Its first stage and stem are fixed, as those of a pretrained backbone are."""

    def __init__(self, depth: int, width: int, in_channels: int, image_size: int) -> None:
        super().__init__(depth, width, in_channels=in_channels, image_size=image_size)
        self.conv.requires_grad_(False)
        self.stage1.requires_grad_(False)


@pytest.mark.parametrize("train_minibatches", [1, 3])
def test_what_the_space_froze_is_neither_trained_nor_counted(
    train_minibatches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = "tests.scoring.test_scorer:HalfFrozen"
    judge = scorer("grad_norm", space=space, train_minibatches=train_minibatches, precision="float64")
    network = judge.super_network(0)
    frozen = [weight for part in (network.conv, network.stage1) for weight in part.parameters()]
    before = [weight.detach().clone() for weight in frozen]
    seen = []

    def measure(model, task, batch):
        seen.append(all(torch.equal(weight, old) for weight, old in zip(frozen, before, strict=True)))
        others = [weight for weight in model.active_parameters() if all(weight is not one for one in frozen)]
        gradients = torch.autograd.grad(task.loss(model, batch), others)
        return Score(sum(gradient.abs().sum().item() for gradient in gradients))

    found = judge.score(network, CANDIDATES[1])
    monkeypatch.setattr(judge.proxy, "measure", measure)
    assert judge.score(network, CANDIDATES[1]) == found
    assert seen == [True]


def test_float32_on_a_gpu_is_no_tf32() -> None:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    with autocast(torch.device("cuda"), "float32"):
        assert conv.fp32_precision == "ieee"
        image = torch.ones(1, 1, 4, 4, requires_grad=True)
        F.conv2d(image, torch.ones(1, 1, 3, 3)).sum().backward()  # PyTorch does not mind the flag while it computes
    assert conv.fp32_precision == before
    assert torch.backends.cudnn.allow_tf32 in (True, False)  # nor who reads the older flag afterwards


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"image_size": 16}, "the search space is for images of 1x16x16 and digits has 1x8x8; set in_channels and"),
        ({"in_channels": 3}, "the search space is for images of 3x8x8 and digits has 1x8x8; set in_channels and"),
        ({"num_classes": 5}, "digits has 10 classes and the network 5; set num_classes"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        scorer(space_args={**ARGUMENTS, **arguments}, batch_size=4)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"precision": "half"}, ConfigError, "no precision 'half'; choose from auto, float32, bf16, float64"),
        ({"device": "abacus"}, ConfigError, "the device 'abacus' cannot be used"),
        ({"batch_size": 2000}, DataError, "there are 1437"),
        ({"batch_size": 600, "minibatches": 3}, DataError, "3 minibatch.* of 600 need 1800"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        scores(**settings)


def test_auto_takes_the_cpu_where_there_is_no_gpu() -> None:
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.gpu
def test_auto_takes_a_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == "cuda"  # needs a CUDA device


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_only_where_it_is_native_and_was_measured_to_rank_alike(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve_precision("auto", cpu, bf16_known=True) == ("bf16" if native else "float32")
    assert resolve_precision("auto", cpu, bf16_known=False) == "float32"
    assert resolve_precision("auto", gpu, bf16_known=True) == "float32"
    assert resolve_precision("float64", cpu, bf16_known=True) == "float64"


def test_a_detector_of_ones_own_has_the_classes_of_its_data(coco_folder: Path) -> None:
    coco = make_task("coco", str(coco_folder))
    given = {"model": "torchvision.models.detection:fasterrcnn_resnet50_fpn", "input_size": [3, 64, 64]}
    arguments = {"weights": None, "weights_backbone": None, "min_size": 64, "max_size": 64}
    batch = coco.minibatch(1, seed=0)
    check_fit(NETWORK, {**given, "model_args": {**arguments, "num_classes": 91}}, coco, batch)
    with pytest.raises(ConfigError, match="coco has 91 classes and the network 10"):
        check_fit(NETWORK, {**given, "model_args": {**arguments, "num_classes": 10}}, coco, batch)
    digits = make_task("digits")
    with pytest.raises(ConfigError, match="detect, and digits is a data set for classification"):
        check_fit(NETWORK, {**given, "model_args": arguments}, digits, digits.minibatch(2, seed=0))

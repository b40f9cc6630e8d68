"""MaskRCNNSpace: torchvision's Mask R-CNN to the bit, costs equal to built networks, Fisher potential of its losses."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from nni_blockswap.architecture import Architecture
from nni_blockswap.blocks.shells import Block
from nni_blockswap.blocks.weights import seeded
from nni_blockswap.errors import SpaceError
from nni_blockswap.scoring.engines import choose
from nni_blockswap.scoring.engines.feeding import feeding
from nni_blockswap.scoring.engines.links import links
from nni_blockswap.scoring.proxies import make_proxy
from nni_blockswap.scoring.scorer import Scorer
from nni_blockswap.scoring.settings import ScoreSettings
from nni_blockswap.spaces import cost_table
from nni_blockswap.tasks.coco import Coco
from search_spaces.mask_rcnn import MaskRCNNSpace

SPACE, BACKBONE = "search_spaces.mask_rcnn:MaskRCNNSpace", "search_spaces.resnet:ResNetSpace"
TINY = {"depth": 18, "min_size": 64, "max_size": 96, "box_batch_size_per_image": 8}
MIXED = ["S", "B(2)", "G(N/8)", "BG(2,8)", "G(16)", "B(4)", "BG(2,2)", "G(N)"]
LEVELS = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}


def torchvisions(norm_layer: Callable[[int], nn.Module]) -> MaskRCNN:
    """Mask R-CNN over torchvision's own ResNet-18, assembled from torchvision's public parts."""
    backbone = BackboneWithFPN(resnet18(norm_layer=norm_layer), LEVELS, [64, 128, 256, 512], 256)
    return MaskRCNN(backbone, 91, min_size=64, max_size=96, box_batch_size_per_image=8)


def detect_a_little(network: MaskRCNN) -> MaskRCNN:
    """Ten detections an image, from fifty proposals and however unlikely, so that untrained networks detect quickly."""
    network.rpn._post_nms_top_n["testing"] = 50
    network.roi_heads.score_thresh, network.roi_heads.detections_per_img = 0.0, 10
    return network.eval()


def two_images() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 60, 80, generator=draw), torch.rand(3, 70, 50, generator=draw)]
    boxes = [[[5.0, 5.0, 40.0, 50.0], [20.0, 10.0, 70.0, 30.0]], [[10.0, 20.0, 45.0, 60.0]]]
    return images, [
        {
            "boxes": torch.tensor(corners),
            "labels": torch.arange(1, 1 + len(corners)),
            "masks": (torch.rand(len(corners), *image.shape[1:], generator=draw) < 0.5).byte(),
        }
        for image, corners in zip(images, boxes, strict=True)
    ]


@pytest.mark.parametrize("frozen_bn", [False, True])
def test_losses_and_detections_equal_torchvisions_to_the_bit(frozen_bn: bool) -> None:
    original = torchvisions(FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d)
    network = Architecture.from_choices(SPACE, ["S"] * 8, {**TINY, "frozen_bn": frozen_bn}).build()
    network.load_state_dict(original.state_dict(), strict=True)
    images, targets = two_images()
    losses = []
    for model in (original.train(), network.train()):
        with seeded(0):  # anchors and proposals are sampled
            losses.append(model(images, targets))
    detections = [detect_a_little(model)(images) for model in (original, network)]
    assert losses[0].keys() == losses[1].keys()
    assert len(losses[0]) == 5
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    for expected, found in zip(*detections, strict=True):
        assert len(expected["boxes"]) == 10
        assert all(torch.equal(expected[name], found[name]) for name in ("boxes", "labels", "scores", "masks"))


@pytest.mark.parametrize(
    ("trainable", "frozen"), [(5, set()), (3, {"conv1", "bn1", "layer1"}), (2, {"conv1", "bn1", "layer1", "layer2"})]
)
def test_layers_are_frozen_as_torchvision_freezes_them(trainable: int, frozen: set[str]) -> None:
    with torch.device("meta"):
        body = MaskRCNNSpace(**TINY, trainable_layers=trainable).backbone.body
    for name, stage in body.named_children():
        assert all(weight.requires_grad == (name not in frozen) for weight in stage.parameters())


@pytest.mark.parametrize("frozen_bn", [False, True])
def test_table_equals_built_networks(frozen_bn: bool) -> None:
    """Parameters, and MACs of backbone, FPN and RPN head counted with hooks on the layers of the built network."""
    space_args = {"depth": 34, "min_size": 100, "max_size": 150, "frozen_bn": frozen_bn}
    table = cost_table(SPACE, space_args)
    draw = np.random.default_rng(0)
    for _ in range(5):
        choices = table.names(tuple(draw.integers(len(names)) for names in table.candidates))
        architecture = Architecture.from_choices(SPACE, choices, space_args)
        with torch.device("meta"):
            network = architecture.build()
        assert architecture.params == sum(parameter.numel() for parameter in network.parameters())
        assert architecture.macs == counted_macs(network, (3, 128, 160))


def counted_macs(network: nn.Module, size: tuple[int, int, int]) -> int:
    total = 0

    def count(module: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    features = network.get_submodule("backbone")(torch.empty(1, *size, device="meta"))
    network.get_submodule("rpn.head")(list(features.values()))
    return total


def test_parameters_are_those_of_backbone_fpn_and_heads() -> None:
    """torchvision's published counts: ResNet-34, and Mask R-CNN over ResNet-50 with its other backbone exchanged."""
    resnet34, resnet34_classifier = 21_797_672, 512 * 1000 + 1000
    resnet50, resnet50_classifier, over_resnet50 = 25_557_032, 2048 * 1000 + 1000, 44_401_393
    resnet50_frozen_bn = 53_120  # scales and shifts, parameters in one count and none in the other
    rest = over_resnet50 - (resnet50 - resnet50_classifier - resnet50_frozen_bn)
    narrower = 256 * (256 + 512 + 1024 + 2048 - (64 + 128 + 256 + 512))  # the FPN's 1x1 convolutions
    teacher = Architecture.from_choices(SPACE, ["S"] * 16)
    assert teacher.params == resnet34 - resnet34_classifier + rest - narrower


def test_choices_of_a_classifier_carry_over() -> None:
    classifier = Architecture.from_choices(BACKBONE, MIXED, {"depth": 18})
    detector = Architecture.from_choices(SPACE, classifier.choices, TINY)
    assert detector.choices == classifier.choices
    assert cost_table(SPACE, TINY).candidates == cost_table(BACKBONE, {"depth": 18}).candidates


def test_fisher_potential_of_the_summed_losses(coco_folder: Path) -> None:
    """Against equation (2) in float64 on the frozen network alone, full backward pass, block by block."""
    settings = ScoreSettings(space=SPACE, space_args=TINY, data="coco", batch_size=2, device="cpu", precision="float64")
    scorer = Scorer(settings, Coco(str(coco_folder)), make_proxy("fisher"))
    architecture = Architecture.from_choices(SPACE, MIXED, TINY)
    space = scorer.super_network(init=0)
    score = scorer.score(space, architecture.choices)
    assert score == scorer.score(space, architecture.choices)  # sampled alike each time

    network = architecture.build().double().train().requires_grad_(True)
    network.load_state_dict(weights_of_selected(space))
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    for block in blocks_of(network):
        list(block.branch.children())[-1].register_forward_hook(keep)
    task = scorer.task
    images, targets = task.to(task.minibatch(2, seed=0), torch.device("cpu"), torch.float64)
    with seeded(0):  # as anchors and proposals are sampled for a score
        losses = network(images, targets)
    assert len(losses) == 5
    sum(losses.values()).backward()
    for output, found in zip(outputs, score.blocks, strict=True):
        assert output.grad is not None
        by_channel = [
            sum((output[n, c] * output.grad[n, c]).sum().item() ** 2 for n in range(2)) / (2 * 2)
            for c in range(output.shape[1])
        ]
        assert found == pytest.approx(sum(by_channel), rel=1e-6)


@pytest.mark.parametrize("frozen_bn", [False, True])
def test_the_chain_of_a_detector_equals_the_plain_way(coco_folder: Path, frozen_bn: bool) -> None:
    settings = ScoreSettings(
        space=SPACE, space_args={**TINY, "frozen_bn": frozen_bn}, data="coco", batch_size=2, device="cpu",
        precision="float64", processes=1,
    )  # fmt: skip
    scorer = Scorer(settings, Coco(str(coco_folder)), make_proxy("fisher"))
    network = scorer.super_network(init=0)
    chain = links(network, scorer.task, scorer.measured[0])
    assert feeding(network, scorer.task, scorer.measured[0], chain) == (1, 3, 5, 7)  # the last of each stage
    assert choose(scorer.work(0)).name == "chain"
    rows = [MIXED, [*MIXED[:5], "S", "S", "S"], ["S"] * 8]
    candidates = [Architecture.from_choices(SPACE, row, TINY).choices for row in rows]
    found = dict(scorer.scores(0, candidates))
    for position, choices in enumerate(candidates):
        # The same sums in another order; the forward pass, which chooses the proposals, is the same to the last bit.
        assert found[position].blocks == pytest.approx(scorer.score(network, choices).blocks, rel=1e-9)


def test_a_helper_is_told_the_folder_alone(coco_folder: Path) -> None:
    task = Coco(str(coco_folder))
    task.minibatch(2, seed=0)
    assert vars(pickle.loads(pickle.dumps(task))) == {"root": coco_folder}


def blocks_of(network: nn.Module) -> list[Block]:
    return [module for module in network.modules() if isinstance(module, Block)]


def weights_of_selected(space: MaskRCNNSpace) -> dict[str, Tensor]:
    """The super-network's weights under the names of the frozen network that it runs."""
    weights = {key: tensor for key, tensor in space.state_dict().items() if ".branch." not in key}
    for path, block in space.named_modules():
        if isinstance(block, Block):
            running = block.active_branch().state_dict()
            weights |= {f"{path}.branch.{key}": tensor for key, tensor in running.items()}
    return weights


def test_bad_arguments() -> None:
    with pytest.raises(SpaceError, match="18 or 34, not 50"):
        MaskRCNNSpace(depth=50)
    with pytest.raises(SpaceError, match="0 to 5 trainable layers"):
        MaskRCNNSpace(trainable_layers=6)
    for wrong in ({"min_size": 31}, {"max_size": 0}, {"max_size": 48.5}, {"box_batch_size_per_image": "many"}):
        (name,) = wrong
        with pytest.raises(SpaceError, match=rf"{name} is a whole number from \d+ to 10,000, not {wrong[name]!r}"):
            MaskRCNNSpace(**wrong)

import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from nni_blockswap.blocks.finding import find
from nni_blockswap.blocks.found import Findings, FoundSite
from nni_blockswap.blocks.surgery import extract, place, replace
from tests.blocks.networks import NETWORKS, OWN, Nested, Network, PreActivation, tensors

BIG = {"wide_resnet50_2", "vgg11_bn", "deeplabv3_resnet50", "fasterrcnn_resnet50_fpn"}
"""Five to fifteen seconds each on a busy core."""

SWAPPABLE = [
    pytest.param(network, id=str(network), marks=pytest.mark.slow if network.name in BIG else ())
    for network in NETWORKS + OWN
    if network.sites
]


def run(network: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(1)  # dropout, and a detector's choice of boxes
    return list(tensors(network(*arguments)))


def small_step(network: nn.Module, arguments: tuple[Any, ...]) -> None:
    """A backward pass through all that a network gives."""
    sum(output.float().sum() for output in run(network, arguments) if output.requires_grad).backward()


def other(site: FoundSite) -> nn.Module:
    """A module of the site's shapes that is nothing like the original: no kernel, no normalisation."""
    pool = nn.AdaptiveAvgPool2d(site.out_shape[1:])
    return nn.Sequential(nn.Conv2d(site.in_channels, site.out_channels, 1), pool, nn.Softsign())


@pytest.mark.parametrize("network", SWAPPABLE)
def test_the_original_in_its_own_place_computes_the_same_to_the_bit(network: Network) -> None:
    """Outputs in both modes, gradients, and statistics of normalisations after a training pass."""
    model = network.make()
    swapped = copy.deepcopy(model)
    kept = swapped.state_dict(keep_vars=True)  # the same tensors under their old names
    for site in find(model, network.arguments()).sites:
        replace(swapped, site, extract(swapped, site))
    for training in (False, True):
        arguments = network.arguments(training)
        expected, outputs = (run(one.train(training), arguments) for one in (model, swapped))
        assert expected
        assert all(torch.equal(one, two) for one, two in zip(expected, outputs, strict=True))
        assert all(one.isfinite().all() for one in outputs)
    small_step(model, network.arguments(training=True))
    small_step(swapped, network.arguments(training=True))
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(kept[name], tensor)
        assert (kept[name].grad is None) == (tensor.grad is None)
        assert tensor.grad is None or torch.equal(kept[name].grad, tensor.grad)


@pytest.mark.parametrize("network", SWAPPABLE)
def test_any_module_can_stand_in_every_site(network: Network) -> None:
    model = network.make().train()
    before = dict(model.named_parameters())
    found = find(model, network.arguments())
    inside = {part for site in found.sites for part in site.parts}
    for site in found.sites:
        replace(model, site, other(site))
    small_step(model, network.arguments(training=True))
    new = {f"{place(site)}.0.{name}" for site in found.sites for name in ("weight", "bias")}
    gone = {name for name in before if any(name.startswith(f"{part}.") for part in inside)}
    after = dict(model.named_parameters())
    assert set(after) == set(before) - gone | new
    assert all(after[name] is before[name] for name in set(before) - gone)
    assert all(after[name].grad is not None and after[name].grad.isfinite().all() for name in new)
    again = copy.deepcopy(model)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    again.load_state_dict(model.state_dict())
    model.eval(), again.eval()
    outputs = [run(one, network.arguments()) for one in (model, again)]
    assert all(torch.equal(one, two) for one, two in zip(*outputs, strict=True))


@pytest.fixture
def swapped() -> tuple[nn.Module, Findings, Tensor]:
    """A network with functions between convolutions, half of it swapped."""
    images = torch.rand(2, 3, 16, 16)
    model = Nested().eval()
    found = find(model, images)
    replace(model, found.sites[0], extract(model, found.sites[0]))
    replace(model, found.sites[1], other(found.sites[1]))
    return model, found, images


def test_names_of_an_extracted_branch() -> None:
    network = next(network for network in NETWORKS if network.name == "resnet18").make()
    site = find(network, torch.rand(1, 3, 32, 32)).sites[2]
    branch = extract(network, site)
    assert [name for name, _ in branch.named_children()] == ["conv1", "bn1", "relu", "conv2"]
    assert branch.conv1 is network.layer2[0].conv1
    assert place(site) == "layer2.0.conv1.inner"
    replace(network, site, branch)
    assert network.get_submodule(place(site)) is branch
    assert type(network.layer2[0]).__name__ == "BasicBlock"  # its class, its code and its other modules are its own


def test_names_of_functions_and_of_modules_in_modules() -> None:
    network = Nested()
    branch = extract(network, find(network, torch.rand(1, 3, 16, 16)).sites[0])
    assert [name for name, _ in branch.named_children()] == ["first", "norm", "leakyrelu", "dropout", "second"]
    assert branch.leakyrelu.negative_slope == 0.2
    mobile = next(network for network in NETWORKS if network.name == "mobilenet_v2").make()
    names = [name for name, _ in extract(mobile, find(mobile, torch.rand(1, 3, 32, 32)).sites[0]).named_children()]
    assert names == [*(f"conv_{i}_{j}" for i in (0, 1) for j in (0, 1, 2)), "conv_2"]


def test_where_nothing_of_the_network_stands_between_the_module_is_alone() -> None:
    mobile = next(network for network in NETWORKS if network.name == "mobilenet_v2").make()
    site = find(mobile, torch.rand(1, 3, 32, 32)).sites[0]
    new = other(site)
    replace(mobile, site, new)
    assert mobile.features[2].conv[0][0] is new
    assert {type(mobile.get_submodule(part)) for part in site.parts[1:]} == {nn.Identity}


def test_hooks_and_modes_of_what_stays() -> None:
    network, images, seen = PreActivation(), torch.rand(2, 3, 16, 16), []
    network.blocks[1].bn1.register_forward_hook(lambda *_: seen.append("bn1"))
    network.blocks[1].bn1.eval()
    found = find(network, images)
    seen.clear()
    replace(network, found.sites[1], other(found.sites[1]))
    network(images)
    assert seen == ["bn1"]
    assert [path for path, module in network.named_modules() if not module.training] == ["blocks.1.bn1"]


def test_what_the_network_does_in_place_between_leaves_the_result_alone() -> None:
    network, images = PreActivation(), torch.rand(2, 3, 16, 16)  # its ReLU works in place
    site = find(network, images).sites[0]
    new = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Sigmoid())  # whose gradient needs its output as it was
    replace(network, site, new)
    network(images).sum().backward()
    assert new[0].weight.grad.abs().sum() > 0


def test_a_site_can_be_replaced_again(swapped: tuple[nn.Module, Findings, Tensor]) -> None:
    model, found, images = swapped
    new = other(found.sites[1])
    replace(model, found.sites[1], new)
    assert model.get_submodule(place(found.sites[1])) is new
    model(images).sum().backward()
    assert new[0].weight.grad is not None


class Alias(nn.Module):
    """Holds a convolution under two names and runs it by the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.again = nn.ModuleList([self.one])

    def forward(self, x: Tensor) -> Tensor:
        return self.again[0](self.stem(x))


def test_every_name_of_a_module_is_replaced() -> None:
    network = Alias()
    (site,) = find(network, torch.rand(1, 3, 8, 8)).sites
    new = nn.Conv2d(8, 8, 3, groups=8)
    replace(network, site, new)
    assert network.one is network.again[0] is new


def test_copies_do_not_hand_tensors_to_each_other(swapped: tuple[nn.Module, Findings, Tensor]) -> None:
    model, _, images = swapped
    expected = model(images)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images), expected)
    entrances = [module for one in (model, twin) for module in one.modules() if hasattr(module, "_passage")]
    assert len({id(module._passage) for module in entrances}) == 4  # two sites in each, each with two ends
    assert all(module._passage.tensor is None for module in entrances)
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), expected)


def test_threads_do_not_hand_tensors_to_each_other(swapped: tuple[nn.Module, Findings, Tensor]) -> None:
    model, _, _ = swapped
    images = [torch.full((1, 3, 16, 16), float(value)) for value in range(4)]
    expected = [model(image) for image in images]
    gate = threading.Barrier(len(images), timeout=10)
    model.body["low"][0].norm.register_forward_pre_hook(lambda *_: (gate.wait(), None)[1])  # all inside at once
    with ThreadPoolExecutor(len(images)) as pool:
        outputs = list(pool.map(model, images))
    assert all(torch.equal(one, two) for one, two in zip(outputs, expected, strict=True))


def test_export_and_compile(swapped: tuple[nn.Module, Findings, Tensor]) -> None:
    model, _, images = swapped
    batch = ({0: torch.export.Dim("batch", min=2, max=64)},)
    exported = torch.export.export(model, (images,), dynamic_shapes=batch).run_decompositions()
    more = torch.cat([images, images.flip(0), images])
    torch.testing.assert_close(exported.module()(more), model(more))
    assert not any("empty" in str(node.target) for node in exported.graph.nodes)  # the way between left no trace
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(more), model(more))
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))


def test_inner_values_of_a_swapped_network_can_be_taken_out(swapped: tuple[nn.Module, Findings, Tensor]) -> None:
    model, _, images = swapped
    taken = create_feature_extractor(model, ["body.low", "head"])(images)
    assert taken["body.low"].shape == (2, 16, 8, 8)
    assert torch.equal(taken["head"], model(images))

"""Pruning and SNIP: what is kept, that it is counted right, and that zeros stay so through training and resumption."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import BudgetError
from nni_blockswap.tasks import make_task
from nni_blockswap.training import pruning as sparse
from nni_blockswap.training.recipe import Recipe

TASK = make_task("digits", image_size=8)
WEIGHTS = (nn.Conv2d, nn.Linear)


def fresh(seed=0):
    torch.manual_seed(seed)
    arguments = {"depth": 10, "width": 1, "in_channels": 1, "image_size": 8}
    return Architecture.from_choices("search_spaces.wide_resnet:WideResNetSpace", ["S"] * 3, arguments).build()


def batch(size=16):
    return TASK.minibatch(size, seed=0)


def test_magnitude_pruning_keeps_the_largest_weights_of_the_whole_network():
    network, nonzero = fresh(), 20_000
    weights = {
        name: module.weight.detach().clone() for name, module in network.named_modules() if isinstance(module, WEIGHTS)
    }
    others = sum(p.numel() for p in network.parameters()) - sum(weight.numel() for weight in weights.values())
    sparse.sparsify(network, nonzero, sparse.magnitudes(network))
    sparse.make_permanent(network)
    everything = torch.cat([weight.flatten() for weight in weights.values()]).abs().sort(descending=True).values
    threshold = everything[nonzero - others - 1]
    for name, weight in weights.items():
        expected = torch.where(weight.abs() >= threshold, weight, 0.0)
        assert torch.equal(network.get_submodule(name).weight, expected)


def test_connection_sensitivity_is_the_gradient_with_respect_to_a_mask():
    network = fresh().double()
    images, labels = batch()
    before = copy.deepcopy(network.state_dict())
    found = sparse.connection_sensitivity(network, lambda net: TASK.loss(net, (images.double(), labels)))
    names = {module: name for name, module in network.named_modules()}
    masks = {f"{names[module]}.weight": torch.ones_like(module.weight, requires_grad=True) for module, _ in found}
    original = dict(network.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    masked = {name: value * masks[name] if name in masks else value for name, value in original.items()}
    logits = functional_call(network, {**masked, **buffers}, (images.double(),))
    loss = -logits.log_softmax(1)[range(len(labels)), labels].mean()
    gradients = torch.autograd.grad(loss, list(masks.values()))
    total = sum(float(gradient.abs().sum()) for gradient in gradients)
    for sensitivity, gradient in zip(found.values(), gradients, strict=True):  # both in the order of the modules
        torch.testing.assert_close(sensitivity, gradient.abs() / total, rtol=1e-10, atol=1e-15)
    assert sum(float(one.sum()) for one in found.values()) == pytest.approx(1)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was changed"


def train(network, steps, seed=0):
    """Plain SGD at a rate, momentum and decay that would revive any weight that could be."""
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.05)
    for step in range(steps):
        optimiser.zero_grad()
        TASK.loss(network, TASK.minibatch(16, seed=seed, index=step)).backward()
        optimiser.step()


@pytest.mark.parametrize("method", sparse.METHODS)
def test_zeros_stay_through_training_and_a_resumption(method):
    network, teacher, nonzero = fresh(), fresh(1), 15_000
    sparse.prune_student(network, method, nonzero, teacher, TASK, Recipe(batch_size=16))
    zero = {name: module.weight == 0 for name, module in network.named_modules() if isinstance(module, WEIGHTS)}
    train(network, 3)
    resumed = fresh(2)  # another process builds the network anew, then loads the checkpoint
    sparse.prune_student(resumed, method, nonzero, teacher, TASK, Recipe(batch_size=16))
    resumed.load_state_dict(network.state_dict())
    train(resumed, 3, seed=1)
    sparse.make_permanent(resumed)
    for name, was_zero in zero.items():
        weight = resumed.get_submodule(name).weight
        assert torch.equal(weight == 0, was_zero), f"{name} has other zeros than before"
        assert isinstance(weight, nn.Parameter)
    never_pruned = 2 * 240 + 10  # BN terms and the classifier's biases
    weights = [module.weight for module in resumed.modules() if isinstance(module, WEIGHTS)]
    assert sum(int(weight.count_nonzero()) for weight in weights) + never_pruned == nonzero


def test_a_pruned_network_starts_from_the_teacher_and_snip_from_its_own_weights():
    teacher, own = fresh(1), fresh()
    images, _ = batch()
    for method, source in (("l1-pruning", teacher), ("snip", own)):
        network = fresh()
        sparse.prune_student(network, method, 15_000, teacher, TASK, Recipe(batch_size=16))
        network(images)
        kept = network.conv.weight != 0
        assert torch.equal(network.conv.weight[kept], source.conv.weight[kept])


def test_the_saved_weights_load_into_a_plain_network():
    network = fresh()
    sparse.sparsify(network, 15_000, sparse.magnitudes(network))
    sparse.make_permanent(network)
    assert fresh(3).load_state_dict(network.state_dict()) is not None


@pytest.mark.parametrize("nonzero", [100, 10**9])
def test_a_count_out_of_reach_names_what_is_in_reach(nonzero):
    network = fresh()  # 240 BN channels and 10 biases are never pruned, and one weight at least stays
    with pytest.raises(BudgetError, match=rf"leaves 491 to 77,562 parameters .* not {nonzero:,}"):
        sparse.sparsify(network, nonzero, sparse.magnitudes(network))

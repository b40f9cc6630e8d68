"""What a student starts from."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm

from nni_blockswap.architecture import Architecture
from nni_blockswap.errors import ConfigError
from nni_blockswap.training.starting import start
from tests.conftest import SMALL, WRN

STUDENT = Architecture.from_choices(WRN, ["B(2)", "S", "G(4)"], SMALL)


def built(architecture: Architecture, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return architecture.build()


def test_from_a_teacher_comes_what_has_the_same_name_and_shape_and_nothing_else() -> None:
    student, teacher, before = built(STUDENT, 0), built(STUDENT.teacher(), 1), built(STUDENT, 0).state_dict()
    said = start(student, "teacher", teacher, seed=0)
    after, given = student.state_dict(), teacher.state_dict()
    taken = {name for name in after if name in given and given[name].shape == after[name].shape}
    assert said == f"{len(taken)} of its {len(after)} tensors from its teacher"
    assert {"conv.weight", "fc.bias", "stage2.0.branch.conv1.weight", "stage1.0.bn.running_mean"} <= taken
    for name, value in after.items():
        assert torch.equal(value, given[name] if name in taken else before[name]), name


def test_fresh_weights_are_drawn_from_the_seed_and_nothing_of_the_old_is_left() -> None:
    first, again, other = (built(STUDENT, seed) for seed in (1, 2, 3))
    for network, seed in ((first, 5), (again, 5), (other, 6)):
        for weight in network.parameters():
            nn.init.constant_(weight, 7.0)
        network.stage1[0].bn.running_mean.fill_(7.0)
        assert start(network, "fresh", None, seed) == "fresh weights"
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert not bool((value == 7).any()), name
    assert not torch.equal(first.conv.weight, other.conv.weight)
    assert bool((first.fc.bias == 0).all())
    assert bool((first.stage1[0].bn.weight == 1).all())


def test_convolutions_are_drawn_as_the_papers_authors_do() -> None:
    """Normal, std sqrt(2 / (k^2 C_out)): 36,864 draws stand within 2 % of it."""
    network = nn.Sequential(nn.Conv2d(64, 64, 3, bias=True))
    start(network, "fresh", None, 0)
    assert network[0].weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert bool((network[0].bias == 0).all())


class Positioned(nn.Module):
    """A plain tensor whose name begins a parameter's."""

    def __init__(self) -> None:
        super().__init__()
        self.pos = torch.arange(4.0)
        self.pos_embed = nn.Parameter(torch.ones(4))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.pos_embed)


def test_names_that_begin_alike_compute_nothing() -> None:
    network = Positioned()
    assert start(network, "fresh", None, 0) == "fresh weights"
    assert not network.pos_embed.any()


def test_what_is_refused_has_no_weight_drawn_before() -> None:
    network = nn.Sequential(nn.Linear(2, 2), spectral_norm(nn.Linear(2, 2)))
    before = network[0].weight.clone()
    with pytest.raises(ConfigError, match=r"'1' \(Linear\) computes its weight"):
        start(network, "fresh", None, 0)
    assert torch.equal(network[0].weight, before)
    with pytest.raises(ConfigError, match=r"^Linear computes its weight"):
        start(network[1], "fresh", None, 0)


def test_what_cannot_be_done_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(3))

    with pytest.raises(ConfigError, match=r"'0' \(Scaled\) has weights and no reset_parameters.*init teacher"):
        start(nn.Sequential(Scaled()), "fresh", None, 0)
    for wrapped in (prune.l1_unstructured(nn.Conv2d(1, 2, 1), "weight", 1), spectral_norm(nn.Linear(2, 2))):
        with pytest.raises(ConfigError, match=r"'0' .* computes its weight from other weights, which are not"):
            start(nn.Sequential(wrapped), "fresh", None, 0)
    with pytest.raises(ConfigError, match="needs a teacher"):
        start(nn.Linear(1, 1), "teacher", None, 0)
    with pytest.raises(ConfigError, match="no weights of the names and shapes"):
        start(nn.Linear(1, 1), "teacher", nn.Linear(2, 2), 0)
    for how, said in (
        ("best", "a student starts from fresh or teacher or library, not 'best'"),
        ("teacher=t.pt", "--init teacher takes nothing beside it, not 'teacher=t.pt'; --teacher says whose"),
        ("library=", "a student starts from a library in a folder, --init library=DIR; name it"),
    ):
        with pytest.raises(ConfigError, match=said):
            start(nn.Linear(1, 1), how, None, 0)

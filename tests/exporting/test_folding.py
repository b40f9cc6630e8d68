"""BN folded into convolutions: which, and that outputs stay."""

import pytest
import torch
from torch import nn

from nni_blockswap.errors import ExportError
from nni_blockswap.exporting.folding import fold_batch_norms
from nni_blockswap.exporting.snapshot import Snapshot
from tests.exporting.networks import make, trained

SIZE = (3, 8, 8)


def folded(network, size=SIZE):
    """The network with BN folded; its outputs are those of before, to rounding."""
    snapshot = Snapshot.of(trained(network, size), torch.randn(2, *size), dynamic_batch=True)
    with torch.no_grad():
        before = snapshot.network(snapshot.images)
    fold_batch_norms(snapshot)
    with torch.no_grad():
        torch.testing.assert_close(snapshot.network(snapshot.images), before, rtol=1e-3, atol=1e-4)
    return snapshot.network


def norms(network):
    return [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_folded_convolution_is_gamma_over_sigma_times_its_weights():
    network = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), SIZE)
    conv, bn = network
    result = folded(network)[0]
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    torch.testing.assert_close(result.weight, conv.weight * factor[:, None, None, None])
    torch.testing.assert_close(result.bias, bn.bias + (conv.bias - bn.running_mean) * factor)


def test_every_bn_of_a_resnet_follows_a_convolution():
    network, size = make("resnet18")
    assert norms(folded(network, size)) == []


def test_before_an_activation_a_bn_of_a_wide_resnet_has_its_convolution_only_within_branches():
    network, size = make("wide_resnet")
    # What enters the BN of a block is a sum, or goes past it, too.
    assert norms(folded(network, size)) == ["stage1.0.bn", "stage2.0.bn", "stage3.0.bn", "bn"]


def test_transposed_convolutions_are_folded():
    network = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, groups=1), nn.BatchNorm2d(4), nn.ReLU())
    assert norms(folded(network)) == []


def test_a_transposed_convolution_in_groups_stays():
    network = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    assert norms(folded(network, (4, 8, 8))) == ["1"]


class Twice(nn.Module):
    """A convolution called twice, and one whose output goes past its BN, too."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.seen = nn.Conv2d(3, 3, 1)
        self.seen_bn = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.shared(self.bn(self.shared(x)))
        seen = self.seen(x)
        return self.seen_bn(seen) + seen


def test_what_others_use_is_not_folded():
    assert norms(folded(Twice())) == ["bn", "seen_bn"]


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_is_computed_from_others_is_not_folded(norm):
    network = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    network(torch.randn(2, *SIZE))  # leaves a weight with gradients
    assert norms(folded(network)) == ["1"]


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_refused():
    snapshot = Snapshot.of(Branching(), torch.ones(2, 3), dynamic_batch=True)
    with pytest.raises(ExportError, match="which BN follows which convolution cannot be seen"):
        fold_batch_norms(snapshot)

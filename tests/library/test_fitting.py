"""The last convolution's least squares, beside numpy's."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nni_blockswap.library import fitting
from nni_blockswap.library.fitting import RIDGE, LastConvolution, columns

KINDS: list[dict[str, Any]] = [
    {"kernel_size": 1, "bias": False}, {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (3, 1), "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_columns_times_weights_are_the_convolution(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(4, 6, **kind), torch.randn(3, 4, 9, 7)
    weights = conv.weight.flatten(1)
    if conv.bias is not None:
        weights = torch.cat([weights, conv.bias[:, None]], 1)
    wanted = conv(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(weights @ columns(conv, x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_ridge_regression_of_all_that_was_seen(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "NUMBERS", 4 * 63 * 9)  # an image or two at once
    torch.manual_seed(1)
    branch = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, **kind)).eval()
    batches = [torch.randn(3, 2, 9, 7) for _ in range(2)]
    targets = [torch.randn_like(branch(x)) for x in batches]
    fit = LastConvolution(branch)
    for x, y in zip(batches, targets, strict=True):
        fit(x, y)
    rows = torch.cat([columns(branch[2], branch[:2](x)) for x in batches], 1).detach().double().T.numpy()
    wanted = torch.cat([y.transpose(0, 1).flatten(1) for y in targets], 1).detach().double().T.numpy()
    root = np.sqrt(RIDGE * (rows**2).sum() / rows.shape[1])
    more = np.vstack([rows, root * np.eye(rows.shape[1])]), np.vstack([wanted, np.zeros((rows.shape[1], 6))])
    best = np.linalg.lstsq(*more, rcond=None)[0].T
    fit.solve()
    found = branch[2].weight.detach().flatten(1).numpy()
    np.testing.assert_allclose(found, best[:, : found.shape[1]], rtol=1e-3, atol=1e-5)
    if branch[2].bias is not None:
        np.testing.assert_allclose(branch[2].bias.detach().numpy(), best[:, -1], rtol=1e-3, atol=1e-5)


def test_what_is_right_already_stays_to_the_bit() -> None:
    torch.manual_seed(2)
    branch = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    before = {name: value.clone() for name, value in branch.state_dict().items()}
    fit, x = LastConvolution(branch), torch.randn(8, 4, 8, 8)
    fit(x, branch(x).detach())
    fit.solve()
    assert all(torch.equal(value, before[name]) for name, value in branch.state_dict().items())


@pytest.mark.parametrize(
    "branch",
    [nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), nn.Identity()],
)
def test_other_ends_are_left_alone(branch: nn.Module) -> None:
    before = {name: value.clone() for name, value in branch.state_dict().items()}
    fit, x = LastConvolution(branch.eval()), torch.randn(8, 4, 8, 8)
    fit(x, torch.randn(8, 4, 8, 8))
    fit.solve()
    assert all(torch.equal(value, before[name]) for name, value in branch.state_dict().items())

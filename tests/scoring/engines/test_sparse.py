"""Convolutions that pass over positions without a gradient: what PyTorch's give."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_blockswap.blocks.weights import seeded
from nni_blockswap.scoring.engines import sparse
from search_spaces.mask_rcnn import MaskRCNNSpace


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("there", [0, 1, 9, 400])  # of 400 positions: none, few, and more than few
@pytest.mark.parametrize(("kernel", "padding"), [((3, 3), (1, 1)), ((1, 1), (0, 0)), ((2, 3), (0, 2))])
def test_gradients_are_pytorchs(there: int, kernel, padding, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(5, 7, kernel, padding=padding).to(dtype).requires_grad_(False)
    x = torch.randn(2, 5, 10, 20, generator=draw).to(dtype).requires_grad_()
    expected = F.conv2d(x, conv.weight, conv.bias, padding=padding)
    chosen = torch.zeros(2 * expected[0, 0].numel(), dtype=torch.bool)
    chosen[torch.randperm(len(chosen), generator=draw)[:there]] = True
    mask = chosen.view(2, 1, *expected.shape[2:])
    gradient = torch.randn(expected.shape, generator=draw).to(dtype) * mask
    out = sparse.Conv2d(conv)(x)
    assert torch.equal(out, expected)
    (found,), (wanted,) = (torch.autograd.grad(each, x, gradient) for each in (out, expected))
    assert found.shape == wanted.shape
    # Sums of at most 63 terms in another order; in bfloat16 each is rounded to 2^-9 of its size.
    tolerance = 1e-12 if dtype == torch.float64 else 0.1
    assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance)


def test_autocast_reaches_them() -> None:
    conv = nn.Conv2d(4, 4, 3).requires_grad_(False)
    x = torch.randn(1, 4, 9, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = sparse.Conv2d(conv)(x), conv(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    (found,), (wanted,) = (torch.autograd.grad(each.float().sum(), x) for each in (out, expected))
    assert found.dtype == wanted.dtype == torch.float32


def test_blocks_strides_and_groups_stay() -> None:
    with seeded(0):
        network = MaskRCNNSpace(depth=18, min_size=64, max_size=96)
    sparse.prepare_head(network)
    kinds = {path: type(module) for path, module in network.named_modules()}
    assert kinds["rpn.head.conv.0.0"] is kinds["rpn.head.cls_logits"] is kinds["backbone.fpn.layer_blocks.0.0"]
    assert kinds["rpn.head.cls_logits"] is sparse.Conv2d
    assert kinds["backbone.body.conv1"] is nn.Conv2d  # stride 2
    assert not any(isinstance(one, sparse.Conv2d) for block in network.blocks() for one in block.modules())

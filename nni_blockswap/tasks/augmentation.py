"""Augmentation of small images in batches, on the device of the batch: pad-and-crop, flip, Cutout."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """What training images go through: ``pad`` pixels on each side, a random crop, a flip, a square cut out."""

    pad: int = 4
    flip: bool = True
    cutout: int = 16

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, C, H, W) -> the same shape; every image drawn for itself; what is padded or cut out is 0."""
        draw = _Draw(images, generator)
        if self.pad:
            images = _shift(F.pad(images, [self.pad] * 4), self.pad, draw)
        if self.flip:
            images = torch.where(draw.integers(2).bool().view(-1, 1, 1, 1), images.flip(3), images)
        return _cut_out(images, self.cutout, draw) if self.cutout else images


class _Draw:
    """Random integers, one an image, on the images' device."""

    def __init__(self, images: Tensor, generator: torch.Generator | None) -> None:
        self.count = len(images)
        self.device = images.device
        self.generator = generator

    def integers(self, high: int) -> Tensor:
        """(N,) uniform in 0 .. high - 1."""
        return torch.randint(high, (self.count,), generator=self.generator, device=self.device)


def _shift(padded: Tensor, pad: int, draw: _Draw) -> Tensor:
    """Crop each padded image at a position of its own."""
    height, width = padded.shape[2] - 2 * pad, padded.shape[3] - 2 * pad
    rows = draw.integers(2 * pad + 1)[:, None] + torch.arange(height, device=padded.device)
    columns = draw.integers(2 * pad + 1)[:, None] + torch.arange(width, device=padded.device)
    image = torch.arange(len(padded), device=padded.device)
    return padded.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(images: Tensor, side: int, draw: _Draw) -> Tensor:
    """Zero a square of ``side``, its centre uniform over the image, clipped at the edges (DeVries and Taylor, 2017)."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) - (draw.integers(height) - side // 2)[:, None]
    columns = torch.arange(width, device=images.device) - (draw.integers(width) - side // 2)[:, None]
    inside = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
    return images.masked_fill(inside, 0.0)

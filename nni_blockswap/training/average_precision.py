"""COCO's own metrics, by pycocotools: average precision of boxes and of masks."""

import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Mean over IoU 0.50:0.95, at 0.50, at 0.75; for objects under 32^2 pixels, under 96^2, and above."""

Result = dict[str, Any]
"""One detected instance in COCO's format of results, its box and its mask."""


def results_of(image_id: int, found: Mapping[str, Tensor]) -> list[Result]:
    """What a torchvision detector found on one image, in COCO's format.

    Args:
        image_id: of the image.
        found: boxes (n, 4) as x1, y1, x2, y2, scores (n,), labels (n,) and masks (n, 1, H, W) of probabilities; what is
            above 0.5 belongs to the instance.
    """
    from pycocotools import mask

    boxes = found["boxes"].float().cpu()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)  # x, y, width, height
    pixels = (found["masks"][:, 0] > 0.5).permute(1, 2, 0).byte().cpu().numpy()  # (H, W, n)
    return [
        {"image_id": image_id, "category_id": label, "score": score, "bbox": box, "segmentation": encoded}
        for label, score, box, encoded in zip(
            found["labels"].tolist(),
            found["scores"].tolist(),
            boxes.tolist(),
            mask.encode(np.asfortranarray(pixels)),
            strict=True,
        )
    ]


def average_precision(truth: Any, found: Mapping[int, Sequence[Result]]) -> dict[str, float]:
    """``box/AP``, ``box/AP50``, ..., ``mask/APl`` in [0, 1]; -1 where there is no object of that size.

    Args:
        truth: pycocotools' index of the annotations.
        found: results by image; images that are not in it do not count.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    figures: dict[str, float] = {}
    for kind, name, other in (("bbox", "box", "segmentation"), ("segm", "mask", "bbox")):
        # With its box beside it pycocotools would take a mask's size from the box.
        kept = [
            {key: value for key, value in result.items() if key != other}
            for results in found.values()
            for result in results
        ]
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            evaluation = COCOeval(truth, truth.loadRes(kept) if kept else COCO(), kind)
            evaluation.params.imgIds = sorted(found)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        figures |= {f"{name}/{figure}": float(value) for figure, value in zip(FIGURES, evaluation.stats, strict=False)}
    return figures

"""COCO's annotation files, read and checked."""

import math
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from nni_blockswap.errors import DataError, shown


def read_annotations(path: Path) -> Any:
    """Pycocotools' index of an annotation file, without its chatter.

    Raises:
        DataError: it cannot be read, or an image or an annotation lacks something.
    """
    from pycocotools.coco import COCO

    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            index = COCO(str(path))
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"'{path}' is not an annotation file of COCO ({error}); download it anew.") from error
    for image in index.imgs.values():
        sides = image.get("height"), image.get("width")
        if not (
            type(image["id"]) is int
            and isinstance(image.get("file_name"), str)
            and all(type(side) is int and side > 0 for side in sides)
        ):
            raise DataError(
                f"an image of '{path}' has an id, a file_name, height and width in pixels, not {shown(image)}; "
                "write them into the file."
            )
    for one in index.anns.values():
        _check(one, index, path)
        one.setdefault("iscrowd", 0)  # pycocotools' metrics ask every annotation for it
    if 0 in index.anns:  # which they would take for no annotation
        number = max(index.anns) + 1
        index.anns[number] = index.anns.pop(0)
        index.anns[number]["id"] = number
    return index


def _check(one: Mapping[str, Any], index: Any, path: Path) -> None:
    """Raise DataError where an annotation has no category, box, area or mask."""
    category, box, crowd = one.get("category_id"), one.get("bbox"), one.get("iscrowd", 0)
    for key, is_right, rule in (
        ("category_id", type(category) is int and category in index.cats, "one of the file's categories"),
        ("bbox", isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)), "x, y, width and height"),
        ("area", _is_number(one.get("area")), "a number of pixels"),
        ("iscrowd", crowd in (0, 1), "0 or 1"),
        ("segmentation", _is_mask(one, index), "polygons of three points or more, or a run-length code of the image"),
    ):
        if not is_right:
            raise DataError(
                f"the {key} of annotation {one['id']} in '{path}' has to be {rule}, not {shown(one.get(key))}; "
                "mend it or take the annotation away."
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_mask(one: Mapping[str, Any], index: Any) -> bool:
    """Whether pycocotools makes a mask of the image's size of it."""
    found, image = one.get("segmentation"), index.imgs.get(one["image_id"])
    if isinstance(found, dict):
        return "counts" in found and (image is None or found.get("size") == [image["height"], image["width"]])
    return isinstance(found, list) and bool(found) and isinstance(found[0], list) and len(found[0]) > 4

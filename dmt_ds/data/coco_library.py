"""The door to pycocotools: masks in COCO's forms, and COCO's average precision; knows no image file and no model."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dmt_ds.errors import DataError

Segmentation = list[list[float]] | dict[str, Any]
"""COCO's three forms: polygons [[x, y, x, y, ...], ...], RLE of numbers, RLE of a string."""
Result = dict[str, Any]
"""One found object as COCO writes it: `image_id`, `category_id`, `bbox` [x, y, w, h], `score`, `segmentation`."""

SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""COCO's figures, in the order of its own table: over IoU 0.5 to 0.95, at 0.5, at 0.75, and by the objects' size."""


def check_installed() -> None:
    """Say how to get what boxes and masks need, before an hour of work rather than after it.

    Raises:
        DataError: pycocotools is not there.
    """
    _masks()


def mask_of(segmentation: Segmentation, height: int, width: int) -> Tensor:
    """An object's pixels, [H, W] uint8 of 0 and 1.

    Args:
        segmentation: in any of COCO's forms; an RLE has this height and width.
    """
    pixels: np.ndarray = _masks().decode(rle_of(segmentation, height, width))
    return torch.from_numpy(np.ascontiguousarray(pixels))


def area_of(segmentation: Segmentation, height: int, width: int) -> int:
    """Number of an object's pixels, which is what COCO calls its area; as `mask_of`."""
    return int(_masks().area(rle_of(segmentation, height, width)))


def rle_of(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """The compressed RLE, which all of pycocotools takes, of any of COCO's forms."""
    masks = _masks()
    if isinstance(segmentation, list):
        merged: dict[str, Any] = masks.merge(masks.frPyObjects(segmentation, height, width))
        return merged
    if isinstance(segmentation["counts"], list):
        compressed: dict[str, Any] = masks.frPyObjects(segmentation, *segmentation["size"])
        return compressed
    return segmentation


def encoded(masks: Tensor) -> list[dict[str, Any]]:
    """Masks as JSON holds them: [n, H, W] of 0 and 1 -> n times {"size": [H, W], "counts": text}."""
    columns = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy())  # [H, W, n], column by column
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in _masks().encode(columns)]


def average_precision(
    labels: Mapping[str, Any], results: Sequence[Result], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """COCO's average precision of all images of a data set, each 0 to 1, by the names of `SUMMARY`.

    A crowd is neither an object to find nor a mistake to find something in. A figure over no object at all is left out.

    Args:
        labels: the COCO JSON: `images`, `annotations` (with `area` and `iscrowd`), `categories`.
        results: what was found.
        kind: overlap of boxes, or of masks.
    """
    _masks()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        truth = COCO()
        truth.dataset = {key: [dict(entry) for entry in labels[key]] for key in ("images", "annotations", "categories")}
        for number, entry in enumerate(truth.dataset["annotations"], start=1):
            entry["id"] = number  # COCOeval takes one that is matched by an object of id 0 for a mistake
        truth.createIndex()
        found = truth.loadRes([_of_kind(result, kind) for result in results]) if results else COCO()
        judge = COCOeval(truth, found, kind)
        judge.params.imgIds = sorted(truth.getImgIds())
        judge.params.catIds = sorted(truth.getCatIds())
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    figures = zip(SUMMARY, judge.stats[: len(SUMMARY)].tolist(), strict=True)
    return {name: figure for name, figure in figures if figure >= 0}


def _of_kind(result: Result, kind: Literal["bbox", "segm"]) -> Result:
    """A mask's size, small or large, is that of its pixels; with a box beside it COCO would take the box's."""
    left_out = "segmentation" if kind == "bbox" else "bbox"
    return {key: value for key, value in result.items() if key != left_out}


def _masks() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise DataError(
            f"boxes and masks in COCO's forms need pycocotools ({error}): pip install 'dmt_ds[detection]'; there are "
            "wheels for Linux, macOS and Windows, elsewhere it needs a C compiler"
        ) from None
    module: ModuleType = mask
    return module

"""What a detector found, as COCO's results are written, and what it comes to over all ranks; knows no model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from dmt_ds.data.coco_library import Result, average_precision, encoded
from dmt_ds.downstream.detection.box_masks import put_back
from dmt_ds.engine import dist

_DIGITS_OF_PIXELS, _DIGITS_OF_SCORES = 2, 5
_MASKS_AT_ONCE = 2**26  # bytes of masks in an image, of a large picture with many objects


def results_of(
    found: Mapping[str, Tensor],
    looked_at: tuple[int, int],
    original: tuple[int, int],
    image_id: int,
    category_ids: Sequence[int],
) -> list[Result]:
    """One image's objects in COCO's results format, the likeliest first.

    Args:
        found: `boxes`, `labels`, `scores` and perhaps `masks`, as `Detector` gives them.
        looked_at: height and width that the boxes are of.
        original: of the image as it lies in its file, to which boxes and masks are scaled.
        category_ids: by label.
    """
    down, across = original[0] / looked_at[0], original[1] / looked_at[1]
    boxes = found["boxes"].float()
    boxes = boxes * boxes.new_tensor([across, down, across, down])
    outlines = masks_of(found["masks"], boxes, original) if "masks" in found else None
    corners = boxes.tolist()
    results: list[Result] = [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [round(number, _DIGITS_OF_PIXELS) for number in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, _DIGITS_OF_SCORES),
        }
        for (x1, y1, x2, y2), label, score in zip(
            corners, found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
    ]
    for result, outline in zip(results, outlines or (), strict=False):
        result["segmentation"] = outline
    return results


def masks_of(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """RLEs, of the whole image, of what is likelier in a mask than not: [n, 1, 28, 28] and boxes [n, 4] -> n."""
    numbers = size[0] * size[1] + 3 * masks.shape[-1] * (size[0] + size[1])  # of a mask, and of what it is made by
    at_once = max(1, _MASKS_AT_ONCE // (4 * numbers))
    outlines = []
    for start in range(0, len(masks), at_once):
        some = slice(start, start + at_once)
        outlines += encoded(put_back(masks[some, 0].float(), boxes[some], size) >= 0.5)
    return outlines


def scores_over_ranks(
    results: Sequence[Result], truth: Callable[[], Mapping[str, Any]], masks: bool
) -> dict[str, float]:
    """COCO's average precision of what all ranks found, `box_ap`, `mask_ap50`, ...; all ranks call, rank 0 counts.

    Args:
        results: of this rank's images, each image on one rank.
        truth: gives the COCO JSON of all images.
        masks: whether masks are judged too.
    """
    of_all = [result for part in dist.gather_objects(list(results)) for result in part]
    of_all.sort(key=lambda result: int(result["image_id"]))  # stable: the same order on any number of ranks

    def count() -> dict[str, float]:
        labels = truth()
        scores = {f"box_{name}": score for name, score in average_precision(labels, of_all, "bbox").items()}
        if masks:
            scores |= {f"mask_{name}": score for name, score in average_precision(labels, of_all, "segm").items()}
        return scores

    return dist.decided_by_main(count)

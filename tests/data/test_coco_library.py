"""Masks in COCO's forms are the same pixels, and COCO's average precision is what can be counted by hand."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmt_ds.data.coco import open_coco
from dmt_ds.data.coco_library import Result, average_precision, check_installed, encoded, mask_of
from dmt_ds.errors import DataError
from tests.tiny_coco import rectangle

pytest.importorskip("pycocotools")

HEIGHT, WIDTH = 12, 10


def counts_of(mask: np.ndarray) -> list[int]:
    """Lengths of runs of 0, of 1, of 0, ..., down the columns: written from COCO's description."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def test_polygons_and_both_kinds_of_rle_are_the_same_pixels() -> None:
    pixels = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    pixels[3:9, 2:7] = 1
    numbers = {"size": [HEIGHT, WIDTH], "counts": counts_of(pixels.numpy())}
    (text,) = encoded(pixels[None])
    assert isinstance(text["counts"], str)
    for form in (rectangle(2, 3, 5, 6), numbers, text):
        assert torch.equal(mask_of(form, HEIGHT, WIDTH), pixels)


def test_several_polygons_are_one_object() -> None:
    both = mask_of(rectangle(0, 0, 3, 3) + rectangle(6, 6, 2, 2), HEIGHT, WIDTH)
    assert int(both.sum()) == 9 + 4


def labels_of(*objects: dict[str, Any]) -> dict[str, Any]:
    """A JSON of one image with these objects."""
    annotations = [
        {"id": number + 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 25.0, **thing}
        for number, thing in enumerate(objects)
    ]
    image = {"id": 1, "height": 100, "width": 100}
    return {"images": [image], "annotations": annotations, "categories": [{"id": 3, "name": "red"}]}


def thing(x: float, y: float, width: float = 20, height: float = 20, **more: Any) -> dict[str, Any]:
    """An object with its box and outline."""
    return {"bbox": [x, y, width, height], "segmentation": rectangle(x, y, width, height), **more}


def found(x: float, y: float, score: float, width: float = 20, height: float = 20) -> Result:
    """What a detector says of it."""
    (rle,) = encoded(mask_of(rectangle(x, y, width, height), 100, 100)[None])
    told = {"image_id": 1, "category_id": 3, "bbox": [x, y, width, height]}
    return {**told, "score": score, "segmentation": rle}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_one_of_two_objects_found_is_51_of_101_points_of_recall(kind: Any) -> None:
    scores = average_precision(labels_of(thing(0, 0), thing(50, 50)), [found(0, 0, 0.9)], kind)
    assert scores["ap50"] == pytest.approx(51 / 101)  # precision 1 at recall 0, 0.01, ..., 0.5, then 0
    assert scores["ap"] == pytest.approx(51 / 101)


def test_a_mistake_that_is_surer_than_the_truth_halves_the_precision() -> None:
    results = [found(70, 0, 0.9), found(0, 0, 0.8)]
    assert average_precision(labels_of(thing(0, 0)), results, "bbox")["ap50"] == pytest.approx(0.5)


def test_a_box_that_overlaps_by_two_thirds_counts_up_to_that_threshold() -> None:
    scores = average_precision(labels_of(thing(0, 0, 20, 20)), [found(0, 0, 0.9, 20, 30)], "bbox")
    assert scores["ap50"] == pytest.approx(1) and scores["ap75"] == 0
    assert scores["ap"] == pytest.approx(4 / 10)  # at 0.5, 0.55, 0.6, 0.65


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong(kind: Any) -> None:
    crowd = thing(40, 40, 60, 60)
    results = [found(45, 45, 0.95), found(70, 70, 0.94), found(0, 0, 0.9)]
    as_crowd = average_precision(labels_of(thing(0, 0), {**crowd, "iscrowd": 1}), results, kind)
    as_object = average_precision(labels_of(thing(0, 0), crowd), results, kind)
    assert as_crowd["ap50"] == pytest.approx(1)
    assert as_object["ap50"] < 0.5


def test_a_mask_is_judged_by_its_pixels_not_by_its_box() -> None:
    wrong_mask = {**found(0, 0, 0.9), "segmentation": found(50, 50, 0.9)["segmentation"]}
    assert average_precision(labels_of(thing(0, 0)), [wrong_mask], "bbox")["ap50"] == pytest.approx(1)
    assert average_precision(labels_of(thing(0, 0)), [wrong_mask], "segm")["ap50"] == 0


def test_an_object_of_id_0_can_be_found() -> None:
    assert average_precision(labels_of({**thing(0, 0), "id": 0}), [found(0, 0, 0.9)], "bbox")["ap"] == pytest.approx(1)


def test_nothing_found_is_an_average_precision_of_zero() -> None:
    scores = average_precision(labels_of(thing(0, 0)), [], "bbox")
    assert scores["ap"] == 0 and "ap_large" not in scores  # of no object at all there is none


def test_labels_fed_as_predictions_are_perfect_on_real_photographs(shared_dir: Path) -> None:
    root = shared_dir / "data" / "coco_instances"
    if not root.is_dir():
        pytest.skip(f"no photographs at {root}")
    truth = open_coco(str(root), "val2017", "annotations/instances_{split}.json", "{split}").truth()
    truth["images"] = truth["images"][:60]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] in kept]
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    results = [
        {
            **{key: entry[key] for key in ("image_id", "category_id", "bbox")},
            "score": 1.0,
            "segmentation": encoded(mask_of(entry["segmentation"], *sizes[entry["image_id"]])[None])[0],
        }
        for entry in truth["annotations"]
        if not entry["iscrowd"]
    ]
    assert any(entry["iscrowd"] for entry in truth["annotations"])
    for kind in ("bbox", "segm"):
        scores = average_precision(truth, results, kind)  # type: ignore[arg-type]
        assert set(scores.values()) == {1.0}, (kind, scores)


def test_without_pycocotools_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(DataError, match=r"pip install 'dmt_ds\[detection\]'"):
        check_installed()

"""What is found becomes COCO's results in the image's own pixels, and labels come back from them perfect."""

import json
from pathlib import Path

import pytest
import torch

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.coco import Category, open_coco
from dmt_ds.data.coco_library import mask_of
from dmt_ds.downstream.detection import results
from dmt_ds.downstream.detection.folder import load_detector, save_detector
from dmt_ds.downstream.detection.results import results_of, scores_over_ranks
from dmt_ds.errors import WeightsError
from dmt_ds.models.weights import write_safetensors
from tests.downstream.detection import tiny
from tests.tiny_coco import write_split

pytest.importorskip("pycocotools")


def found(*boxes: list[float], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    """Objects that fill their boxes."""
    count = len(boxes)
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * count, dtype=torch.int64),
        "scores": torch.linspace(1, 0.5, count),
        "masks": torch.ones(count, 1, 28, 28),
    }


def test_boxes_and_masks_are_in_pixels_of_the_file_and_ids_are_the_jsons() -> None:
    (first, second) = results_of(
        found([20, 40, 60, 80], [0, 0, 10, 10], labels=[2, 1]), (200, 100), (100, 50), 42, [3, 7]
    )
    assert (first["image_id"], first["category_id"], first["score"]) == (42, 7, 1.0)
    assert first["bbox"] == [10, 20, 20, 20] and second["category_id"] == 3
    mask = mask_of(first["segmentation"], 100, 50)
    assert mask.shape == (100, 50)
    assert mask[20:40, 10:30].all() and mask.sum() == 400


def test_a_pixel_is_an_objects_where_that_is_likelier_than_not() -> None:
    objects = found([0, 0, 20, 20], [30, 30, 50, 50])
    objects["masks"][0], objects["masks"][1] = 0.49, 0.51
    less, more = (mask_of(result["segmentation"], 60, 60) for result in results_of(objects, (60, 60), (60, 60), 1, [3]))
    assert not less.any() and more[30:50, 30:50].any()


def test_each_side_is_scaled_by_its_own_factor() -> None:
    (only,) = results_of(found([20, 40, 60, 80]), (200, 100), (100, 100), 42, [3])
    assert only["bbox"] == [20, 20, 40, 20]


def test_masks_are_the_same_however_many_of_them_are_put_into_the_image_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = found([20, 40, 60, 80], [0, 0, 10.5, 10], [3.2, 30, 90, 200])
    objects["masks"] = torch.rand(3, 1, 28, 28)
    together = results_of(objects, (200, 100), (100, 50), 42, [3])
    monkeypatch.setattr(results, "_MASKS_AT_ONCE", 1)
    assert results_of(objects, (200, 100), (100, 50), 42, [3]) == together


def test_nothing_found_is_no_result() -> None:
    assert results_of(found(), (64, 64), (64, 64), 1, [3]) == []


def test_labels_that_are_found_as_they_are_have_an_average_precision_of_one(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 7)
    source = open_coco(str(tmp_path), "train", "annotations/instances_{split}.json", "{split}")
    found_in_all = []
    for row in range(len(source)):
        objects = source.objects(row)
        height, width = source.size(row)
        boxes = [[2 * number for number in thing.box] for thing in objects]
        labels = [thing.label + 1 for thing in objects]
        looked_at = (2 * height, 2 * width)
        ids = [category.id for category in source.categories]
        found_in_all += results_of(found(*boxes, labels=labels), looked_at, (height, width), int(source.ids[row]), ids)
    scores = scores_over_ranks(found_in_all, source.truth, masks=True)
    assert scores["box_ap"] == pytest.approx(1) and scores["mask_ap50"] == pytest.approx(1)
    assert scores_over_ranks(found_in_all[:7], source.truth, masks=False)["box_ap"] < 0.7


def test_a_detector_comes_back_from_its_folder_as_it_was(tmp_path: Path) -> None:
    detector = tiny.detector(heads="cascade").eval()
    normal = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    data = DataConfig(image_size=tiny.IMAGE_SIZE, interpolation="bilinear")
    categories = [Category(3, "red"), Category(7, "blue")]
    save_detector(
        tmp_path / "detector",
        detector.state_dict(),
        tiny.STUDENT,
        detector.section,
        data,
        categories,
        **normal,
        provenance={"task": "detect"},
    )
    saved = load_detector(tmp_path / "detector")
    assert (saved.categories, saved.mean, saved.interpolation) == (tuple(categories), (0.1, 0.2, 0.3), "bilinear")
    with torch.no_grad():
        expected, again = (model(tiny.images(), tiny.SEEDS, tiny.SIZES) for model in (detector, saved.detector))
    assert all(torch.equal(expected[0][name], again[0][name]) for name in expected[0])
    described = json.loads((tmp_path / "detector/detector.json").read_text())
    described["student"]["num_heads"] = 5
    (tmp_path / "detector/detector.json").write_text(json.dumps(described))
    with pytest.raises(WeightsError, match=r"holds no detector of this version \(student\.embed_dim 24 is"):
        load_detector(tmp_path / "detector")
    described["student"]["num_heads"] = 3
    early = {key: value for key, value in described.items() if key != "roi_align"}  # as early versions wrote it
    (tmp_path / "detector/detector.json").write_text(json.dumps(early))
    with pytest.raises(
        WeightsError, match=r"detector: its detector was trained with ROIAlign half a cell off, .* train it again"
    ):
        load_detector(tmp_path / "detector")
    (tmp_path / "detector/detector.json").write_text(json.dumps(described))
    write_safetensors(tmp_path / "detector/model.safetensors", {"weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="holds no detector of this version"):
        load_detector(tmp_path / "detector")

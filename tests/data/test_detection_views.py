"""Boxes and masks go where the pixels go, and an image's scale and flip are its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.data.coco import CocoObject, CocoSource, open_coco
from dmt_ds.data.coco_library import encoded
from dmt_ds.data.detection_batch import DetectionTarget
from dmt_ds.data.detection_maker import EvalDetectionMaker, TrainDetectionMaker
from dmt_ds.data.detection_views import (
    Draw,
    ScaleSpec,
    draws,
    padded,
    scaled_image,
    scaled_mask,
    scaled_objects,
    scaled_size,
)
from tests.tiny_coco import rectangle, write_split

pytest.importorskip("pycocotools")

SPEC = ScaleSpec((48, 56, 64), 100, flip=0.5)


@pytest.fixture
def source(tmp_path: Path) -> CocoSource:
    write_split(tmp_path, "train", 7)
    return open_coco(str(tmp_path), "train", "annotations/instances_{split}.json", "{split}")


def test_the_short_side_is_as_wanted_unless_the_long_one_would_be_too_long() -> None:
    assert scaled_size(480, 640, 800, 1333) == (800, 1067)
    assert scaled_size(640, 480, 800, 1333) == (1067, 800)
    assert scaled_size(300, 1000, 800, 1333) == (400, 1333)


@pytest.mark.parametrize("mirrored", [False, True])
def test_box_and_mask_lie_on_the_object_they_are_of(mirrored: bool) -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 10:25, 5:35] = 255
    thing = CocoObject((5, 10, 35, 25), 1, rectangle(5, 10, 30, 15))
    draw = Draw(64, mirrored)
    scaled = scaled_image(image, SPEC, draw)
    size = (scaled.shape[1], scaled.shape[2])
    objects = scaled_objects([thing], (40, 60), size, SPEC, draw)
    bright = scaled[0] > 127
    rows, columns = (bright.any(dim=1 - side).nonzero().flatten() for side in (0, 1))
    seen = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    assert (objects.boxes[0] - seen).abs().max() <= 1
    assert (objects.masks[0].bool() != bright).float().mean() < 0.02
    assert objects.labels.tolist() == [1]


def test_an_rle_is_scaled_to_the_same_pixels_as_the_polygon_it_was_made_of() -> None:
    polygon = [[10.0, 5.0, 50.0, 12.0, 30.0, 36.0]]
    (rle,) = encoded(scaled_mask(polygon, (40, 60), (40, 60))[None])
    from_polygon, from_rle = (scaled_mask(form, (40, 60), (80, 120)).bool() for form in (polygon, rle))
    assert (from_polygon & from_rle).sum() / (from_polygon | from_rle).sum() > 0.94


def test_scale_and_flip_are_drawn_evenly_and_by_the_seed_alone() -> None:
    seeds = sample_rng.image_seeds(0, torch.zeros(3000, dtype=torch.int64), torch.arange(3000))
    drawn = draws(seeds, SPEC)
    shares = [sum(draw.short_side == side for draw in drawn) / 3000 for side in SPEC.short_sides]
    assert max(abs(share - 1 / 3) for share in shares) < 0.04
    assert abs(sum(draw.mirrored for draw in drawn) / 3000 - 0.5) < 0.04
    assert draws(seeds[17:18], SPEC) == drawn[17:18]
    assert not any(draw.mirrored for draw in draws(seeds, replace(SPEC, flip=0.0)))


def test_images_of_several_sizes_stand_at_the_top_left_of_one_black_batch() -> None:
    images = [torch.full((3, 30, 50), 7, dtype=torch.uint8), torch.full((3, 40, 20), 9, dtype=torch.uint8)]
    batch = padded(images, 32)
    assert batch.shape == (2, 3, 64, 64)
    for place, image in zip(batch, images, strict=True):
        assert torch.equal(place[:, : image.shape[1], : image.shape[2]], image)
        assert int(place.sum()) == int(image.sum())


def target_of(maker: TrainDetectionMaker | EvalDetectionMaker, rows: list[int]) -> tuple[Tensor, DetectionTarget]:
    made = maker[[0] * len(rows), rows]
    assert made.failure is None and made.batch is not None
    assert isinstance(made.batch.target, DetectionTarget)
    return made.batch.images, made.batch.target


def test_an_image_is_the_same_in_any_batch(source: CocoSource) -> None:
    maker = TrainDetectionMaker(source, SPEC, 64, run_seed=3, bad_images="stop")
    images, target = target_of(maker, [2, 5, 1])
    alone, alone_target = target_of(maker, [5])
    height, width = target.sizes[1]
    assert alone_target.sizes == ((height, width),)
    assert torch.equal(images[1, :, :height, :width], alone[0, :, :height, :width])
    for batched, own in zip(target.objects[1], alone_target.objects[0], strict=True):
        assert torch.equal(batched, own)


def test_a_broken_picture_ends_the_batch_or_is_replaced(tmp_path: Path, source: CocoSource) -> None:
    (tmp_path / "train" / "0005.png").write_bytes(b"no picture")
    stops = TrainDetectionMaker(source, SPEC, 64, run_seed=3, bad_images="stop")[[0, 0], [5, 1]]
    assert stops.batch is None and "0005.png" in str(stops.failure)
    skips = TrainDetectionMaker(source, SPEC, 64, run_seed=3, bad_images="skip")[[0, 0], [5, 1]]
    assert skips.batch is not None and "0005.png" in skips.unreadable[0]
    row = int(skips.batch.indices[0])
    assert row != 5
    assert isinstance(skips.batch.target, DetectionTarget)
    assert len(skips.batch.target.objects[0].labels) == len(source.objects(row))


def test_what_is_judged_is_not_mirrored_and_a_row_too_many_does_not_count(source: CocoSource) -> None:
    maker = EvalDetectionMaker(source, ScaleSpec((64,), 100), 64)
    images, target = target_of(maker, [2])
    (height, width) = target.sizes[0]
    assert min(height, width) == 64 and target.objects == ()
    expected = scaled_image(source.read(2), SPEC, Draw(64, False))
    assert np.array_equal(images[0, :, :height, :width].numpy(), expected.numpy())
    labels = [maker[[0], [row]].batch.labels.item() for row in (6, 7)]  # type: ignore[union-attr]
    assert labels == [0, -1]


def test_without_masks_none_are_drawn(source: CocoSource) -> None:
    maker = TrainDetectionMaker(source, replace(SPEC, masks=False), 64, run_seed=0, bad_images="stop")
    _, target = target_of(maker, [0])
    assert target.objects[0].masks.shape[0] == 0 and len(target.objects[0].boxes) == 2

"""An image and its label map are scaled, cropped and mirrored together: coordinates in the pixels prove it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.config.schema import DataConfig
from dmt_ds.config.segmentation import SegmentConfig
from dmt_ds.data.joint_crop import NUMBERS, JointCrop, resized, scaled_size
from dmt_ds.data.label_maps import LabelMapSource, open_label_maps
from dmt_ds.data.loader import TrainLoader, every_image
from dmt_ds.data.map_batches import EvalMapMaker, LabelMaps, TrainMapMaker
from dmt_ds.data.sampling import SampleStream
from tests.tiny_scenes import write_ade

SIZE = 32
CROP = JointCrop(SIZE, None, (0.5, 2.0), 0.5, 1.0, "bilinear")


def coordinates(height: int = 50, width: int = 60) -> tuple[Tensor, Tensor]:
    """A ramp along each axis as red and green, and the same ramp of columns, a class each 4 of its values."""
    rows = torch.linspace(0, 240, height).round().byte()[:, None].expand(height, width)
    columns = torch.linspace(0, 240, width).round().byte()[None].expand(height, width)
    return torch.stack([rows, columns, torch.zeros_like(rows)]), columns


def cut(crop: JointCrop, pair: tuple[Tensor, Tensor], numbers: list[float]) -> tuple[Tensor, Tensor]:
    image, labels = torch.zeros(3, crop.size, crop.size).byte(), torch.zeros(crop.size, crop.size).byte()
    crop.cut_into(image, labels, pair, numbers)
    return image, labels


@pytest.mark.parametrize("seed", range(12))
def test_image_and_map_are_cut_and_mirrored_alike(seed: int) -> None:
    numbers = sample_rng.uniform(torch.tensor([seed]), "test", NUMBERS)[0].tolist()
    image, labels = cut(CROP, coordinates(), numbers)
    filled = labels == 255
    steps = (image[1].int() - labels.int()).abs()[~filled]
    # A pixel of the ramp is 4 wide; bilinear and nearest differ by less than a pixel of the original.
    assert int(steps.max()) <= 5
    assert not image[:, filled].any()


def test_the_factor_scales_and_what_is_not_filled_is_ignored() -> None:
    pair = (torch.full((3, 40, 40), 200).byte(), torch.ones(40, 40).byte())
    image, labels = torch.full((3, SIZE, SIZE), 7).byte(), torch.full((SIZE, SIZE), 7).byte()
    size = replace(CROP, flip=0.0).cut_into(image, labels, pair, [0.0] * NUMBERS)  # half as large
    assert size == (20, 20)
    assert (labels[:20, :20] == 1).all()
    assert (labels[20:] == 255).all()
    assert (labels[:, 20:] == 255).all()
    assert (image[:, :20, :20] == 200).all()
    assert (image[:, 25, 25] == 0).all()


def test_the_map_of_a_twice_as_large_image_repeats_its_pixels() -> None:
    labels = torch.arange(12).reshape(3, 4).byte()
    assert torch.equal(resized(labels, None, 2.0), labels.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_the_short_side_is_met_and_the_long_one_limited() -> None:
    assert scaled_size(300, 400, 512) == (512, 683)
    assert scaled_size(100, 1000, 512) == (205, 2048)
    assert scaled_size(300, 400, None, 0.5) == (150, 200)


def test_a_crop_of_one_class_alone_is_drawn_anew() -> None:
    labels = torch.zeros(SIZE, 4 * SIZE).byte()
    labels[:, 3 * SIZE + 16 :] = 1
    pair = (torch.zeros(3, SIZE, 4 * SIZE).byte(), labels)
    # Tries: at the left, where all is class 0, then far to the right, where half is.
    numbers = [1 / 3, 0.9, 0.0, 0.0, 0.0, 0.999, *[0.0] * (NUMBERS - 6)]
    crop = replace(CROP, max_class_share=0.75)
    assert set(cut(crop, pair, numbers)[1].unique().tolist()) == {0, 1}
    assert set(cut(CROP, pair, numbers)[1].unique().tolist()) == {0}
    hopeless = [1 / 3, 0.9, *[0.0] * (NUMBERS - 2)]
    assert set(cut(crop, pair, hopeless)[1].unique().tolist()) == {0}


def test_a_crop_is_drawn_anew_ten_times_and_what_then_comes_is_taken() -> None:
    crop = replace(CROP, max_class_share=0.75, flip=0.0, scale=(1.0, 1.0))
    labels = torch.zeros(CROP.size, 2 * CROP.size, dtype=torch.uint8)
    labels[:, CROP.size :: 2] = 1
    pair = torch.zeros(3, *labels.shape, dtype=torch.uint8), labels
    left = [0.0, 0.0]
    assert NUMBERS == 2 + 11 * 2
    numbers = [0.0, 0.9, *(left * 10), 0.0, 0.999]
    assert set(cut(crop, pair, numbers)[1].unique().tolist()) == {0, 1}


def test_a_crop_without_any_class_is_drawn_anew() -> None:
    labels = (torch.arange(2 * SIZE) % 2).byte().expand(SIZE, 2 * SIZE).clone()  # two classes, a column each in turn
    labels[:, :SIZE] = 255
    pair = (torch.zeros(3, SIZE, 2 * SIZE).byte(), labels)
    numbers = [1 / 3, 0.9, 0.0, 0.0, 0.0, 0.999, *[0.0] * (NUMBERS - 6)]  # tries: at the left, then at the right
    assert not (cut(replace(CROP, max_class_share=0.75), pair, numbers)[1] == 255).any()


@pytest.fixture
def source(tmp_path: Path) -> LabelMapSource:
    data = DataConfig(source="folder", path=str(write_ade(tmp_path)), train_split="training")
    return open_label_maps(data, SegmentConfig(), "train")


def loader(source: LabelMapSource, micro_batch_size: int, **settings: object) -> TrainLoader:
    maker = TrainMapMaker(source, CROP, run_seed=1, bad_images="stop")
    stream = SampleStream(len(source), 1)
    return TrainLoader(maker, stream, micro_batch_size=micro_batch_size, **settings)


def pairs(loaded: TrainLoader, count: int, accumulation: int = 1) -> tuple[Tensor, Tensor]:
    batches = list(loaded.batches(0, count, accumulation))
    maps = [batch.target.maps for batch in batches if isinstance(batch.target, LabelMaps)]
    return torch.cat([batch.images for batch in batches]), torch.cat(maps)


def test_crops_belong_to_images_however_batches_are_cut_and_whoever_decodes(source: LabelMapSource) -> None:
    whole = pairs(loader(source, 8), 2)
    for other in (loader(source, 4), loader(source, 4, num_workers=1)):
        for one, two in zip(whole, pairs(other, 4), strict=True):
            assert torch.equal(one, two)
    assert len({crop.numpy().tobytes() for crop in whole[0]}) == 16


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_images_and_a_filler_has_no_class(source: LabelMapSource, world_size: int) -> None:
    maker = EvalMapMaker(source, 20, "bilinear")
    seen: list[int] = []
    for rank in range(world_size):
        for batch in every_image(maker, len(source), 1, rank=rank, world_size=world_size):
            assert isinstance(batch.target, LabelMaps)
            assert batch.images.shape == (1, 3, 20, 28)
            assert batch.target.maps.shape == (1, 40, 56)
            if (batch.target.maps != 255).any():
                seen += batch.indices.tolist()
    assert sorted(seen) == list(range(len(source)))

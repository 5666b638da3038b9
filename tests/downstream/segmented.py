"""A small segmentation task on drawn scenes that tests share."""

from pathlib import Path

import torch

from dmt_ds.config.methods import AugmentConfig
from dmt_ds.config.schema import DataConfig, StudentConfig
from dmt_ds.config.segmentation import SegmentConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.joint_crop import JointCrop
from dmt_ds.data.label_maps import SegmentedImages, open_segmented
from dmt_ds.data.map_batches import TrainMapMaker
from dmt_ds.downstream.segmentation import SegmentationTask
from tests.tiny_scenes import CLASSES

CROP = 24
PLAIN = AugmentConfig(brightness=0.0, contrast=0.0, saturation=0.0)
STUDENT = StudentConfig(patch_size=4, embed_dim=48, depth=6, num_heads=3, drop_path=0.1)
SECTION = SegmentConfig(channels=16, auxiliary_channels=8, short_side=30, test_stride=10)


def data_of(folder: Path) -> DataConfig:
    return DataConfig(
        source="folder",
        path=str(folder),
        train_split="training",
        val_split="validation",
        image_size=CROP,
        interpolation="bilinear",
    )


def images_of(folder: Path) -> SegmentedImages:
    return open_segmented(data_of(folder), SECTION)


def task(student: StudentConfig = STUDENT, **settings: object) -> SegmentationTask:
    torch.manual_seed(0)
    section = SECTION.model_copy(update=settings)
    return SegmentationTask(student, section, CROP, PLAIN, CLASSES)


def batch(folder: Path, size: int = 8) -> Batch:
    crop = JointCrop.from_sections(data_of(folder), SECTION)
    made = TrainMapMaker(images_of(folder).train, crop, run_seed=0, bad_images="stop")[([0] * size, list(range(size)))]
    assert made.batch is not None
    return made.batch

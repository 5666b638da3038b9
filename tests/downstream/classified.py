"""A small classification task on real digits that tests share."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dmt_ds.config.methods import AugmentConfig, ClassifyConfig
from dmt_ds.config.schema import DataConfig, StudentConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import TrainBatchMaker
from dmt_ds.data.sources import ImageSource, SpacedImages, open_source
from dmt_ds.downstream.accuracy import Accuracy
from dmt_ds.downstream.answers import accuracy_over_ranks
from dmt_ds.downstream.classification import ClassificationTask

IMAGE_SIZE = 16
CLASS_NAMES = tuple("0123456789")
DATA = DataConfig(image_size=IMAGE_SIZE, crop_scale=(0.6, 1.0), horizontal_flip=0.0, interpolation="bilinear")
PLAIN = AugmentConfig(brightness=0.0, contrast=0.0, saturation=0.0)
STUDENT = StudentConfig(patch_size=4, embed_dim=48, depth=2, num_heads=3, drop_path=0.1)


def task(student: StudentConfig = STUDENT, **settings: object) -> ClassificationTask:
    torch.manual_seed(0)
    section = ClassifyConfig.model_validate({"rand_augment_magnitude": 3.0, "erasing": 0.5, **settings})
    return ClassificationTask(student, section, IMAGE_SIZE, PLAIN, CLASS_NAMES)


def accuracy(of: ClassificationTask, batches: Iterable[Batch]) -> Accuracy:
    """Of the weights, over all ranks."""
    return accuracy_over_ranks(of.answers({"": of.module}, batches)[""])


def digits_batch(of: ClassificationTask, size: int = 8, epoch: int = 0, indices: Tensor | None = None) -> Batch:
    rows = list(range(size)) if indices is None else indices.tolist()
    maker = TrainBatchMaker(open_source(DATA, "train"), of.crops(DATA), run_seed=0, bad_images="stop")
    made = maker[([epoch] * len(rows), rows)]
    assert made.batch is not None
    return made.batch


def part(whole: Batch, rows: slice) -> Batch:
    return Batch((whole.images[rows],), whole.seeds[rows], whole.indices[rows], whole.labels[rows])


def spaced_images(source: ImageSource, count: int) -> ImageSource:
    return SpacedImages(source, count)

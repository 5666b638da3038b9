"""Batches of the middles of a source's images, every one once, as frozen encoders are judged on them."""

from collections.abc import Iterator

from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import EvalBatchMaker
from dmt_ds.data.loader import every_image
from dmt_ds.data.sources import ImageSource


def middles(source: ImageSource, size: int, batch_size: int, num_workers: int = 0, **ranks: int) -> Iterator[Batch]:
    return every_image(EvalBatchMaker(source, size, "bicubic"), len(source), batch_size, num_workers, **ranks)

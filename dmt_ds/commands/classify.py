"""What a run with labels does beside training: it opens both splits, and is judged on the second."""

import logging
from collections.abc import Callable, Iterator

from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.labels import LabelledImages, open_labelled
from dmt_ds.data.loader import eval_batches
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.downstream.accuracy import Accuracy
from dmt_ds.downstream.classification import ClassificationTask
from dmt_ds.engine import dist
from dmt_ds.engine.task import Model
from dmt_ds.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


def open_images(config: RunConfig) -> tuple[ImageSource, LabelledImages | None]:
    """The training images; where the task learns labels, both splits too."""
    if config.task != "classify":
        return open_source(config.data, "train"), None
    labelled = open_labelled(config.data)
    return labelled.train, labelled


def judge(
    task: ClassificationTask,
    model: Model,
    images: LabelledImages,
    config: RunConfig,
    step: int,
    tracker: Tracker,
    beat: Callable[[str], None],
) -> Accuracy:
    """Log `eval/top1` and `eval/top5` of all validation images at this step; all ranks call, each judges its share.

    Args:
        beat: told after each batch that the rank is alive.
    """

    def watched() -> Iterator[Batch]:
        for batch in batches:
            yield batch
            beat(f"judging step {step}")

    batches = eval_batches(
        images.test,
        config.data.image_size,
        config.train.micro_batch_size,
        config.data.num_workers,
        config.data.interpolation,
        dist.local_world_size(),
        dist.rank(),
        dist.world_size(),
    )
    scores = task.evaluate(model, watched())
    percent = (100 * scores.top1, 100 * scores.top5, len(images.test))
    logger.info("step %d: top-1 %.2f %%, top-5 %.2f %% of %d validation images", step, *percent)
    tracker.log_metrics({f"eval/{name}": value for name, value in scores._asdict().items()}, step)
    return scores

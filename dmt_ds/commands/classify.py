"""What a run with labels does beside training: it opens both splits, is judged on the second, and shows its answers."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dmt_ds.commands.judging import add_to_run, run_of
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.labels import LabelledImages, empty_classes, open_labelled
from dmt_ds.data.loader import eval_batches
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.data.views import center_crop
from dmt_ds.downstream.accuracy import Accuracy
from dmt_ds.downstream.answers import (
    Answers,
    Sample,
    accuracy_over_ranks,
    confusion_over_ranks,
    samples_over_ranks,
)
from dmt_ds.downstream.classification import ClassificationTask
from dmt_ds.engine import dist
from dmt_ds.engine.task import Model
from dmt_ds.errors import DmtError
from dmt_ds.models.teachers import CHECKPOINTS_FOLDER
from dmt_ds.tracking.tracker import Tracker, read_points

logger = logging.getLogger(__name__)

NUM_SAMPLES = 24
"""Images with a right answer, and with a wrong one, that are shown."""
PICTURES_FOLDER = "pictures"


def open_images(config: RunConfig) -> tuple[ImageSource, LabelledImages | None]:
    """The training images; where the task learns labels, both splits too."""
    if config.task != "classify":
        return open_source(config.data, "train"), None
    labelled = open_labelled(config.data)
    return labelled.train, labelled


@dataclass(frozen=True)
class Judge:
    """Judges a run with labels on its validation images, while it trains and at the end; all ranks call all of it.

    Attributes:
        images: both splits.
        folder: of the run.
        beat: told after each batch that the rank is alive.
    """

    task: ClassificationTask
    engine: Model
    images: LabelledImages
    config: RunConfig
    folder: Path
    tracker: Tracker
    beat: Callable[[str], None]

    def look_at_images(self) -> None:
        """Name classes without images; decode each validation image once, so that a broken one is known in time.

        Raises:
            DataError: one can't be read.
        """
        for line in empty_classes(self.images) if dist.is_main() else ():
            logger.warning("%s", line)
        for _ in self._batches("looking at the validation images"):
            pass

    def judge(self, step: int) -> dict[str, Answers]:
        """Log `eval/top1` and `eval/top5` of all validation images, and `eval/ema_*` of the running mean."""
        answers = self.task.answers(self.task.judged(self.engine), self._batches(f"judging step {step}"))
        for name, of_model in answers.items():
            scores = accuracy_over_ranks(of_model)
            percent = (100 * scores.top1, 100 * scores.top5, len(self.images.test))
            what = "running mean of the weights: " if name else ""
            logger.info("step %d: %stop-1 %.2f %%, top-5 %.2f %% of %d validation images", step, what, *percent)
            self.tracker.log_metrics({f"eval/{name}{key}": score for key, score in scores._asdict().items()}, step)
        return answers

    def finish(self, step: int) -> None:
        """Judge what is published; say how it compares to the best on the way; leave pictures of what is mistaken."""
        name, of_published = list(self.judge(step).items())[-1]
        scores = accuracy_over_ranks(of_published)
        confusion = confusion_over_ranks(of_published, self.task.num_classes)
        samples = samples_over_ranks(of_published, NUM_SAMPLES)
        if not dist.is_main():
            return
        self._say_best(f"eval/{name}top1")
        self._add_to_origin(scores)
        if self.config.tracking.pictures:
            try:
                self._draw(confusion, *samples)
            except Exception as error:  # a picture is no reason to lose a run
                logger.warning("%s: no pictures: %s: %s", self.folder / PICTURES_FOLDER, type(error).__name__, error)

    def _say_best(self, metric: str) -> None:
        """The best is chosen by the images it is judged on, so it is told, not published."""
        scores = {
            point["step"]: point["metrics"][metric] for point in read_points(self.folder) if metric in point["metrics"]
        }
        if not scores:
            return
        best, last = max(scores, key=lambda step: scores[step]), max(scores)
        self.tracker.log_metrics({f"{metric}_best": scores[best]}, last)
        told = (metric, 100 * scores[last], last, 100 * scores[best], best)
        logger.info("%s: %.2f %% at the last step, %d, which is published; best %.2f %% at step %d", *told)

    def _add_to_origin(self, scores: Accuracy) -> None:
        """What an encoder reaches stands with the run that made it, as all readouts do."""
        source = self.config.student.init_from
        origin = None if source is None else run_of(source)
        if source is None or origin is None or CHECKPOINTS_FOLDER in Path(source).parts:
            return  # a checkpoint on the way is not what the run came to
        kind = "probe" if self.config.classify.frozen else "finetune"
        self.beat("telling the encoder's run")
        try:
            add_to_run(origin, {f"eval/{kind}_{key}": score for key, score in scores._asdict().items()})
        except (DmtError, OSError) as error:
            logger.warning("%s: what its encoder reaches is not added to its run: %s", origin, error)

    def _draw(self, confusion: Tensor, right: list[Sample], wrong: list[Sample]) -> None:
        from dmt_ds.tracking import answer_pictures

        folder, names = self.folder / PICTURES_FOLDER, self.task.class_names
        answer_pictures.write_confusion(confusion, names, folder / "confusion.csv")
        answer_pictures.draw_confusion(confusion, names, folder / "confusion.png")
        for kind, samples in (("right", right), ("wrong", wrong)):
            shown = [
                (self._picture(sample.row), names[sample.label], names[sample.answer], sample.probability)
                for sample in samples
            ]
            if shown:
                answer_pictures.draw_answers(shown, folder / f"answers_{kind}.png")

    def _picture(self, row: int) -> Tensor:
        """[3, H, W] uint8, as it was judged."""
        data = self.config.data
        return center_crop(self.images.test.read(row), data.image_size, data.interpolation)

    def _batches(self, doing: str) -> Iterator[Batch]:
        """This rank's share of the validation images."""
        data = self.config.data
        for batch in eval_batches(
            self.images.test,
            data.image_size,
            self.config.train.micro_batch_size,
            data.num_workers,
            data.interpolation,
            dist.local_world_size(),
            dist.rank(),
            dist.world_size(),
        ):
            yield batch
            self.beat(doing)

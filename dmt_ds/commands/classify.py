"""Classification as a task with annotations: its images, its judge, its pictures of answers, the folder it leaves."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dmt_ds.commands.annotated import AnnotatedKind, Scene
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import EvalBatchMaker
from dmt_ds.data.labels import LabelledImages, empty_classes, open_labelled
from dmt_ds.data.views import center_crop
from dmt_ds.downstream.answers import (
    Answers,
    Sample,
    accuracy_over_ranks,
    confusion_over_ranks,
    samples_over_ranks,
)
from dmt_ds.downstream.classification import ClassificationTask
from dmt_ds.engine import dist
from dmt_ds.errors import ConfigError
from dmt_ds.models.classifier_folder import save_classifier
from dmt_ds.run_files import CLASSIFIER_FOLDER

logger = logging.getLogger(__name__)

NUM_SAMPLES = 24
"""Images with a right answer, and with a wrong one, that are shown."""
MOST_CONFUSED = 2000
"""Classes at most of which a confusion matrix is made: of ten times as many it fills gigabytes, and shows nothing."""


class Classification(AnnotatedKind[ClassificationTask, LabelledImages]):
    """Classes of whole images."""

    folder = CLASSIFIER_FOLDER
    told_as = ("finetune", "probe")

    def open(self, config: RunConfig) -> LabelledImages:
        """Both splits with their labels."""
        return open_labelled(config.data)

    def gaps(self, images: LabelledImages) -> list[str]:
        """Classes without images."""
        return empty_classes(images)

    def build(self, config: RunConfig, class_names: Sequence[str]) -> ClassificationTask:
        """A classifier.

        Raises:
            ConfigError: a head alone is to be trained, on no encoder.
        """
        section = config.classify
        if section.frozen and config.student.init_from is None:
            raise ConfigError(
                "classify.frozen trains a head on a given encoder: start it by `dmt-ds finetune -e SOURCE`"
            )
        return ClassificationTask(config.student, section, config.data.image_size, config.augment, class_names)

    def build_judge(self, task: ClassificationTask, images: LabelledImages, scene: Scene) -> "ClassificationJudge":
        """The judge by top-1 and top-5."""
        return ClassificationJudge(task, images, scene)

    def save(
        self,
        task: ClassificationTask,
        config: RunConfig,
        masters: Mapping[str, Tensor],
        provenance: Mapping[str, Any],
        folder: Path,
    ) -> None:
        """Encoder and head as timm has them."""
        published = task.published
        save_classifier(
            folder,
            published.timm_state(masters if published is task.module else {}),
            config.student,
            config.data,
            config.classify.pooling,
            task.class_names,
            norms_the_mean=published.norms_the_mean,
            mean=config.augment.mean,
            std=config.augment.std,
            provenance=provenance,
        )

    def averages(self, config: RunConfig) -> bool:
        """Whether `classify.ema_decay` asks for a running mean."""
        return config.classify.ema_decay > 0

    def stage(self, config: RunConfig) -> str:
        """`linear`, `finetune`, or `pretrain` from random weights."""
        if config.student.init_from is None:
            return "pretrain"
        return "linear" if config.classify.frozen else "finetune"

    def recipe_of(self, size: str) -> str:
        """The recipe that fine-tunes the whole."""
        return f"finetune_vit_{size}"

    def suffix(self, config: RunConfig) -> str:
        """The name of what is trained: `linear` or `finetune`."""
        return "linear" if config.classify.frozen else "finetune"


@dataclass(frozen=True)
class ClassificationJudge:
    """Judges a run with labels on its validation images, while it trains and at the end; all ranks call all of it.

    Attributes:
        images: both splits.
    """

    task: ClassificationTask
    images: LabelledImages
    scene: Scene

    def look_at_images(self) -> None:
        """Name classes without images; decode each validation image once, so that a broken one is known in time.

        Raises:
            DataError: one can't be read.
        """
        for line in empty_classes(self.images) if dist.is_main() else ():
            logger.warning("%s", line)
        for _ in self._batches("reading the validation images"):
            pass

    def evaluate(self, step: int) -> dict[str, Answers]:
        """Log `eval/top1` and `eval/top5` of all validation images, and `eval/ema_*` of the running mean."""
        answers = self.task.answers(self.task.judged(self.scene.engine), self._batches(f"evaluating step {step}"))
        for name, of_model in answers.items():
            scores = accuracy_over_ranks(of_model)
            percent = (100 * scores.top1, 100 * scores.top5, len(self.images.test))
            what = "running mean of the weights: " if name else ""
            logger.info("step %d: %stop-1 %.2f %%, top-5 %.2f %% of %d validation images", step, what, *percent)
            self.scene.tracker.log_metrics(
                {f"eval/{name}{key}": score for key, score in scores._asdict().items()}, step
            )
        return answers

    def finish(self, step: int) -> None:
        """Judge what is published; say how it compares to the best on the way; leave pictures of what is mistaken."""
        name, of_published = list(self.evaluate(step).items())[-1]
        scores = accuracy_over_ranks(of_published)
        num_classes = self.task.num_classes
        confusion = confusion_over_ranks(of_published, num_classes) if num_classes <= MOST_CONFUSED else None
        samples = samples_over_ranks(of_published, NUM_SAMPLES)
        if not dist.is_main():
            return
        self.scene.say_best(f"eval/{name}top1")
        self.scene.tell_origin("probe" if self.scene.config.classify.frozen else "finetune", scores._asdict())
        if confusion is None:
            logger.info("no confusion matrix of %d classes, as it is for %d at most", num_classes, MOST_CONFUSED)
        self.scene.picture(lambda: self._draw(confusion, *samples))

    def _draw(self, confusion: Tensor | None, right: list[Sample], wrong: list[Sample]) -> None:
        from dmt_ds.tracking import answer_pictures

        folder, names = self.scene.pictures, self.task.class_names
        if confusion is not None:
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
        data = self.scene.config.data
        return center_crop(self.images.test.read(row), data.image_size, data.interpolation)

    def _batches(self, doing: str) -> Iterator[Batch]:
        """This rank's share of the validation images."""
        data = self.scene.config.data
        maker = EvalBatchMaker(self.images.test, data.image_size, data.interpolation)
        return self.scene.batches(maker, len(self.images.test), self.scene.config.train.micro_batch_size, doing)

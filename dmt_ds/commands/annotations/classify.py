"""Classification as a task with annotations: its images, its judge, its pictures of answers, the folder it leaves."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dmt_ds.commands.annotations.annotated import AnnotatedKind, Judgement, Scene
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import BatchMaker, EvalBatchMaker, TrainBatchMaker
from dmt_ds.data.labels import LabelledImages, empty_classes, open_labelled, open_labelled_split
from dmt_ds.data.sources import ImageSource
from dmt_ds.data.views import center_crop
from dmt_ds.downstream.answers import (
    Answers,
    Sample,
    accuracy_over_ranks,
    confusion_over_ranks,
    samples_over_ranks,
)
from dmt_ds.downstream.classification import ClassificationTask
from dmt_ds.engine.task import Model
from dmt_ds.errors import ConfigError
from dmt_ds.models.backbone_folder import CONFIG_FILE
from dmt_ds.models.classifier_folder import load_classifier, save_classifier
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
    described_in = CONFIG_FILE
    shaped_by = ("classify.pooling", "classify.frozen")
    may_lack_classes = True

    def open(self, config: RunConfig) -> LabelledImages:
        """Both splits with their labels."""
        return open_labelled(config.data)

    def unseen(self, images: LabelledImages) -> list[str]:
        """Classes without images."""
        return empty_classes(images)

    def open_validation(self, config: RunConfig) -> ImageSource:
        """The validation split with its labels."""
        return open_labelled_split(config.data, "val")

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

    def train_maker(self, config: RunConfig, images: LabelledImages, task: ClassificationTask) -> BatchMaker:
        """Crops of images with their labels."""
        return TrainBatchMaker(images.train, task.crops(config.data), config.seed, config.data.bad_images)

    def build_judge(self, task: ClassificationTask, images: ImageSource, scene: Scene) -> "ClassificationJudge":
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

    def restore(self, config: RunConfig, folder: Path) -> ClassificationTask:
        """The published classifier, which is the running mean where there is one."""
        vit, _, class_names = load_classifier(folder)
        section = config.classify.model_copy(update={"ema_decay": 0.0})
        student = config.student.model_copy(update={"init_from": None})
        task = ClassificationTask(student, section, config.data.image_size, config.augment, class_names)
        task.module.load_timm_state(vit.state_dict())
        return task

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
    """Judges a classifier by top-1 and top-5; all ranks call all of it.

    Attributes:
        images: those that it is judged on.
    """

    task: ClassificationTask
    images: ImageSource
    scene: Scene

    drawn = ("confusion.csv", "confusion.png", "answers_right.png", "answers_wrong.png")

    @property
    def told_as(self) -> str:
        """`probe` of a head alone."""
        return "probe" if self.scene.config.classify.frozen else "finetune"

    def look_at_images(self) -> None:
        """Decode each image once, so that a broken one is known in time.

        Raises:
            DataError: one can't be read.
        """
        for _ in self._batches("reading the validation images"):
            pass

    def judge(self, model: Model, doing: str) -> Judgement[Answers]:
        """`top1` and `top5`; those of the running mean, where there is one, which is what is published."""
        answers = self.task.answers(self.task.evaluated_models(model), self._batches(doing))
        scores = {prefix: accuracy_over_ranks(of_model)._asdict() for prefix, of_model in answers.items()}
        told = [
            f"{'running mean of the weights: ' if prefix else ''}top-1 {100 * found['top1']:.2f} %, "
            f"top-5 {100 * found['top5']:.2f} % of {len(self.images)} validation images"
            for prefix, found in scores.items()
        ]
        published = list(scores)[-1]
        others = {
            f"{prefix}{name}": score
            for prefix, found in scores.items()
            if prefix != published
            for name, score in found.items()
        }
        return Judgement(scores[published], told, "top1", answers[published], published, others)

    def pictures(self, judgement: Judgement[Answers]) -> Callable[[Path], None]:
        """The confusion matrix, and sheets of right and wrong answers."""
        num_classes = self.task.num_classes
        confusion = confusion_over_ranks(judgement.answers, num_classes) if num_classes <= MOST_CONFUSED else None
        samples = samples_over_ranks(judgement.answers, NUM_SAMPLES)
        if confusion is None:
            logger.info("no confusion matrix of %d classes, as it is for %d at most", num_classes, MOST_CONFUSED)
        return partial(self._draw, confusion, *samples)

    def _draw(self, confusion: Tensor | None, right: list[Sample], wrong: list[Sample], folder: Path) -> None:
        from dmt_ds.tracking import answer_pictures

        names = self.task.class_names
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
        return center_crop(self.images.read(row), data.image_size, data.interpolation)

    def _batches(self, doing: str) -> Iterator[Batch]:
        """This rank's share of the images."""
        data = self.scene.config.data
        maker = EvalBatchMaker(self.images, data.image_size, data.interpolation)
        return self.scene.batches(maker, len(self.images), self.scene.config.train.micro_batch_size, doing)

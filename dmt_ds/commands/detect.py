"""Detection as a task with annotations: COCO's images, the judge by average precision, its pictures, its folder."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dmt_ds.commands.annotated import AnnotatedKind, Scene
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import BatchMaker
from dmt_ds.data.coco import CocoSource, check_judged, check_same_categories, open_coco
from dmt_ds.data.coco_library import Result, Segmentation, check_installed, mask_of
from dmt_ds.data.detection_maker import EvalDetectionMaker, TrainDetectionMaker
from dmt_ds.data.detection_views import ScaleSpec
from dmt_ds.data.splits import Split
from dmt_ds.downstream.detection.folder import save_detector
from dmt_ds.downstream.detection.results import results_of, scores_over_ranks
from dmt_ds.engine import dist
from dmt_ds.engine.masters import state_of
from dmt_ds.errors import ConfigError
from dmt_ds.run_files import DETECTOR_FOLDER
from dmt_ds.tracking.object_pictures import SHOWN_FROM, PicturedObject, draw_pairs

if TYPE_CHECKING:
    from dmt_ds.downstream.detection.task import DetectionTask  # with torchvision, which no other task needs so early

logger = logging.getLogger(__name__)

NUM_PICTURES = 8
"""Validation images whose objects are drawn, as labelled and as found."""


@dataclass(frozen=True)
class CocoImages:
    """Both splits; what is judged is judged by the whole of the validation JSON."""

    train: CocoSource
    test: CocoSource

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the categories, by label."""
        return self.train.class_names


class Detection(AnnotatedKind["DetectionTask", CocoImages]):
    """Boxes and masks of objects."""

    folder = DETECTOR_FOLDER
    told_as = ("detect",)
    images_of_origin = False

    def open(self, config: RunConfig) -> CocoImages:
        """Both splits of a COCO data set."""
        images = CocoImages(self.source(config, "train"), self.source(config, "val"))
        check_same_categories(images.train, images.test)
        check_judged(images.test)
        return images

    def source(self, config: RunConfig, split: Split) -> CocoSource:
        """One split with its objects."""
        check_installed()
        data = config.data
        if data.path is None:
            raise ConfigError("data.path is needed for task detect: the folder with a COCO data set")
        name, limit = (data.train_split, data.max_train_images) if split == "train" else (data.val_split, None)
        section = config.detect
        return open_coco(data.path, name, section.annotations, section.images, limit, section.masks)

    def gaps(self, images: CocoImages) -> list[str]:
        """Categories without objects to learn from."""
        return images.train.unseen_categories()

    def build(self, config: RunConfig, class_names: Sequence[str]) -> "DetectionTask":
        """A detector."""
        from dmt_ds.downstream.detection.task import DetectionTask

        return DetectionTask(config.student, config.detect, config.data.image_size, config.augment, class_names)

    def train_maker(self, config: RunConfig, images: CocoImages) -> BatchMaker:
        """Images of several sizes with their objects."""
        from dmt_ds.downstream.detection.detector import size_multiple

        section, data = config.detect, config.data
        spec = ScaleSpec(section.short_sides, section.max_side, data.horizontal_flip, data.interpolation, section.masks)
        multiple = size_multiple(config.student.patch_size)
        return TrainDetectionMaker(images.train, spec, multiple, config.seed, data.bad_images)

    def build_judge(self, task: "DetectionTask", images: CocoImages, scene: Scene) -> "DetectionJudge":
        """The judge by COCO's average precision."""
        return DetectionJudge(task, images, scene)

    def save(
        self,
        task: "DetectionTask",
        config: RunConfig,
        masters: Mapping[str, Tensor],
        provenance: Mapping[str, Any],
        folder: Path,
    ) -> None:
        """Encoder, pyramid and heads, and the categories as the training JSON has them."""
        save_detector(
            folder,
            state_of(task.module, masters),
            config.student,
            config.detect,
            config.data,
            self.source(config, "train").categories,
            mean=config.augment.mean,
            std=config.augment.std,
            provenance=provenance,
        )

    def stage(self, config: RunConfig) -> str:
        """`detect`, from whatever weights."""
        return "detect"

    def recipe_of(self, size: str) -> str:
        """Mask R-CNN on COCO."""
        return f"detect_coco_mask_rcnn_vit_{size}"


@dataclass(frozen=True)
class DetectionJudge:
    """Judges a detector on the validation images, while it trains and at the end; all ranks call all of it.

    Attributes:
        images: both splits.
    """

    task: "DetectionTask"
    images: CocoImages
    scene: Scene

    def look_at_images(self) -> None:
        """Name categories without objects; decode each validation image once, so that a broken one is known in time.

        Raises:
            DataError: one can't be read.
        """
        for line in self.images.train.unseen_categories() if dist.is_main() else ():
            logger.warning("%s", line)
        for _ in self._batches("reading the validation images"):
            pass

    def evaluate(self, step: int) -> list[Result]:
        """Log `eval/box_ap`, `eval/mask_ap` and their like of all validation images; gives this rank's results."""
        results, _ = self._judged(step)
        return results

    def finish(self, step: int) -> None:
        """Judge what is published; say how it compares to the best on the way; draw what is found beside the labels."""
        results, scores = self._judged(step)
        pictured = self._pictured_rows()
        ids = set(self.images.test.ids[pictured].tolist())
        shown = dist.gather_objects([result for result in results if result["image_id"] in ids])
        if not dist.is_main():
            return
        self.scene.say_best("eval/mask_ap" if self.scene.config.detect.masks else "eval/box_ap")
        self.scene.tell_origin("detect", scores)
        self.scene.picture(lambda: self._draw(pictured, [result for part in shown for result in part]))

    def _judged(self, step: int) -> tuple[list[Result], dict[str, float]]:
        """This rank's results, and the scores of all."""
        category_ids = [category.id for category in self.images.test.categories]
        results: list[Result] = []
        for answer in self.task.answers(self.scene.engine, self._batches(f"evaluating step {step}")):
            original, image_id = self.images.test.size(answer.row), int(self.images.test.ids[answer.row])
            results += results_of(answer.found, answer.size, original, image_id, category_ids)
        self.scene.beat("counting what was found")
        masks = self.scene.config.detect.masks
        scores = scores_over_ranks(results, self.images.test.truth, masks)
        whole = {kind: scores[f"{kind}_ap"] for kind in ("box", "mask") if f"{kind}_ap" in scores}
        told = ", ".join(f"{kind} AP {100 * score:.2f}" for kind, score in whole.items())
        logger.info("step %d: %s (percent) of %d validation images", step, told, len(self.images.test))
        self.scene.tracker.log_metrics({f"eval/{name}": score for name, score in scores.items()}, step)
        return results, scores

    def _pictured_rows(self) -> list[int]:
        """Images with objects, evenly spaced over the split."""
        rows = [row for row in range(len(self.images.test)) if self.images.test.objects(row)]
        count = min(NUM_PICTURES, len(rows))
        return [rows[turn * len(rows) // count] for turn in range(count)]

    def _draw(self, rows: Sequence[int], results: Sequence[Result]) -> None:
        labels = {category.id: label for label, category in enumerate(self.images.test.categories)}
        pairs = []
        for row in rows:
            height, width = self.images.test.size(row)
            own = [result for result in results if result["image_id"] == self.images.test.ids[row]]
            labelled = [
                PicturedObject(thing.box, thing.label, None, _mask(thing.segmentation, height, width))
                for thing in self.images.test.objects(row)
            ]
            found = [pictured(result, labels, height, width) for result in own if result["score"] >= SHOWN_FROM]
            pairs.append((self.images.test.read(row), labelled, found))
        if pairs:
            draw_pairs(pairs, self.task.class_names, self.scene.pictures / "objects.png")

    def _batches(self, doing: str) -> Iterator[Batch]:
        """This rank's share of the validation images, one a batch."""
        section, data = self.scene.config.detect, self.scene.config.data
        spec = ScaleSpec((section.eval_short_side,), section.max_side, 0.0, data.interpolation)
        maker = EvalDetectionMaker(self.images.test, spec, self.task.module.size_multiple)
        return self.scene.batches(maker, len(self.images.test), 1, doing)


def pictured(result: Result, labels: Mapping[int, int], height: int, width: int) -> PicturedObject:
    """What is drawn of a result; `labels` by category id, the image's size in pixels."""
    x, y, box_width, box_height = result["bbox"]
    label, outline = labels[result["category_id"]], result.get("segmentation")
    return PicturedObject((x, y, x + box_width, y + box_height), label, result["score"], _mask(outline, height, width))


def _mask(outline: Segmentation | None, height: int, width: int) -> Tensor | None:
    return None if outline is None else mask_of(outline, height, width).bool()

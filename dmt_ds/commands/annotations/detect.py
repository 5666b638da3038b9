"""Detection as a task with annotations: COCO's images, the judge by average precision, its pictures, its folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dmt_ds.commands.annotations.annotated import AnnotatedKind, Judgement, Scene
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import BatchMaker
from dmt_ds.data.coco import CocoSource, check_judged, check_same_categories, open_coco
from dmt_ds.data.coco_library import Result, Segmentation, check_installed, mask_of
from dmt_ds.data.detection_maker import EvalDetectionMaker, TrainDetectionMaker
from dmt_ds.data.detection_views import ScaleSpec
from dmt_ds.data.sources import ImageSource
from dmt_ds.data.splits import Split
from dmt_ds.downstream.detection.folder import DETECTOR_FILE, load_detector, save_detector
from dmt_ds.downstream.detection.results import results_of, scores_over_ranks
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed.masters import state_of
from dmt_ds.engine.task import Model
from dmt_ds.errors import ConfigError
from dmt_ds.run_files import DETECTOR_FOLDER
from dmt_ds.tracking.object_pictures import SHOWN_FROM, PicturedObject, draw_pairs

if TYPE_CHECKING:
    from dmt_ds.downstream.detection.task import DetectionTask  # with torchvision, which no other task needs so early

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
    described_in = DETECTOR_FILE
    shaped_by = tuple(
        f"detect.{key}"
        for key in (
            *("heads", "masks", "window_size", "num_global_blocks"),
            *("neck_width", "head_width", "head_convs", "anchor_sizes"),
        )
    )

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

    def open_validation(self, config: RunConfig) -> CocoSource:
        """The validation split with its objects."""
        images = self.source(config, "val")
        check_judged(images)
        return images

    def unseen(self, images: CocoImages) -> list[str]:
        """Categories without objects to learn from."""
        return images.train.unseen_categories()

    def build(self, config: RunConfig, class_names: Sequence[str]) -> "DetectionTask":
        """A detector."""
        from dmt_ds.downstream.detection.task import DetectionTask

        return DetectionTask(config.student, config.detect, config.data.image_size, config.augment, class_names)

    def train_maker(self, config: RunConfig, images: CocoImages, task: "DetectionTask") -> BatchMaker:
        """Images of several sizes with their objects."""
        from dmt_ds.downstream.detection.detector import size_multiple

        section, data = config.detect, config.data
        spec = ScaleSpec(section.short_sides, section.max_side, data.horizontal_flip, data.interpolation, section.masks)
        multiple = size_multiple(config.student.patch_size)
        return TrainDetectionMaker(images.train, spec, multiple, config.seed, data.bad_images)

    def build_judge(self, task: "DetectionTask", images: ImageSource, scene: Scene) -> "DetectionJudge":
        """The judge by COCO's average precision."""
        assert isinstance(images, CocoSource)
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

    def restore(self, config: RunConfig, folder: Path) -> "DetectionTask":
        """The published detector."""
        saved = load_detector(folder)
        student = config.student.model_copy(update={"init_from": None})
        names = [category.name for category in saved.categories]
        task = self.build(config.model_copy(update={"student": student}), names)
        task.module.load_state_dict(saved.detector.state_dict())
        return task

    def stage(self, config: RunConfig) -> str:
        """`detect`, from whatever weights."""
        return "detect"

    def recipe_of(self, size: str) -> str:
        """Mask R-CNN on COCO."""
        return f"detect_coco_mask_rcnn_vit_{size}"


@dataclass(frozen=True)
class DetectionJudge:
    """Judges a detector by COCO's average precision; all ranks call all of it.

    Attributes:
        images: those that it is judged on, with their objects.
    """

    task: "DetectionTask"
    images: CocoSource
    scene: Scene

    told_as = "detect"
    drawn = ("objects.png",)

    def look_at_images(self) -> None:
        """Decode each image once, so that a broken one is known in time.

        Raises:
            DataError: one can't be read.
        """
        for _ in self._batches("reading the validation images"):
            pass

    def judge(self, model: Model, doing: str) -> Judgement[list[Result]]:
        """`box_ap`, `mask_ap` and their like; the answers are this rank's results."""
        category_ids = [category.id for category in self.images.categories]
        results: list[Result] = []
        for answer in self.task.answers(model, self._batches(doing)):
            original, image_id = self.images.size(answer.row), int(self.images.ids[answer.row])
            results += results_of(answer.found, answer.size, original, image_id, category_ids)
        self.scene.beat("counting what was found")
        masks = self.scene.config.detect.masks
        scores = scores_over_ranks(results, self.images.truth, masks)
        whole = {kind: scores[f"{kind}_ap"] for kind in ("box", "mask") if f"{kind}_ap" in scores}
        told = ", ".join(f"{kind} AP {100 * score:.2f}" for kind, score in whole.items())
        told = f"{told} (percent) of {len(self.images)} validation images"
        return Judgement(scores, [told], "mask_ap" if masks else "box_ap", results)

    def pictures(self, judgement: Judgement[list[Result]]) -> Callable[[Path], None]:
        """What is found beside the labels, in a few images."""
        pictured = self._pictured_rows()
        ids = set(self.images.ids[pictured].tolist())
        shown = dist.gather_objects([result for result in judgement.answers if result["image_id"] in ids])
        return partial(self._draw, pictured, [result for part in shown for result in part])

    def _pictured_rows(self) -> list[int]:
        """Images with objects, evenly spaced over the split."""
        rows = [row for row in range(len(self.images)) if self.images.objects(row)]
        count = min(NUM_PICTURES, len(rows))
        return [rows[turn * len(rows) // count] for turn in range(count)]

    def _draw(self, rows: Sequence[int], results: Sequence[Result], folder: Path) -> None:
        labels = {category.id: label for label, category in enumerate(self.images.categories)}
        pairs = []
        for row in rows:
            height, width = self.images.size(row)
            own = [result for result in results if result["image_id"] == self.images.ids[row]]
            labelled = [
                PicturedObject(thing.box, thing.label, None, _mask(thing.segmentation, height, width))
                for thing in self.images.objects(row)
            ]
            found = [pictured(result, labels, height, width) for result in own if result["score"] >= SHOWN_FROM]
            pairs.append((self.images.read(row), labelled, found))
        if pairs:
            draw_pairs(pairs, self.task.class_names, folder / "objects.png")

    def _batches(self, doing: str) -> Iterator[Batch]:
        """This rank's share of the images, one a batch."""
        section, data = self.scene.config.detect, self.scene.config.data
        spec = ScaleSpec((section.eval_short_side,), section.max_side, 0.0, data.interpolation)
        maker = EvalDetectionMaker(self.images, spec, self.task.module.size_multiple)
        return self.scene.batches(maker, len(self.images), 1, doing)


def pictured(result: Result, labels: Mapping[int, int], height: int, width: int) -> PicturedObject:
    """What is drawn of a result; `labels` by category id, the image's size in pixels."""
    x, y, box_width, box_height = result["bbox"]
    label, outline = labels[result["category_id"]], result.get("segmentation")
    return PicturedObject((x, y, x + box_width, y + box_height), label, result["score"], _mask(outline, height, width))


def _mask(outline: Segmentation | None, height: int, width: int) -> Tensor | None:
    return None if outline is None else mask_of(outline, height, width).bool()

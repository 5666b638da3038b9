"""What a task with annotations is made of, for the commands that train, judge and publish; knows no such task.

Each is an `AnnotatedKind` in a file of its own, with its line in `annotated_tasks`, its name in `config.schema`'s
`Task` and `ANNOTATED_TASKS`, its section in `RunConfig`, and its folder in `judging.PUBLISHED`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from dmt_ds.commands.judging import add_to_run, run_of
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import BatchMaker
from dmt_ds.data.loader import every_image
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.data.splits import Split
from dmt_ds.engine import dist
from dmt_ds.engine.task import AnnotatedTask, Model
from dmt_ds.errors import DmtError
from dmt_ds.run_files import CHECKPOINTS_FOLDER, PICTURES_FOLDER
from dmt_ds.tracking.tracker import Tracker, read_points

logger = logging.getLogger(__name__)


class AnnotatedImages(Protocol):
    """Both splits of a data set that people have said something of."""

    @property
    def train(self) -> ImageSource:
        """What is learned from."""
        ...

    @property
    def test(self) -> ImageSource:
        """What is judged on: the validation split."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class number; never empty."""
        ...


@dataclass(frozen=True)
class Scene:
    """What a judge has around it.

    Attributes:
        engine: the trained module, as the task calls it.
        folder: of the run.
        beat: told after each batch that the rank is alive.
    """

    engine: Model
    config: RunConfig
    folder: Path
    tracker: Tracker
    beat: Callable[[str], None]

    @property
    def pictures(self) -> Path:
        """Folder of the run's pictures."""
        return self.folder / PICTURES_FOLDER

    def batches(self, maker: BatchMaker, num_images: int, batch_size: int, doing: str) -> Iterator[Batch]:
        """This rank's share of the validation images, every one of them once; a beat after each batch.

        Args:
            maker: what makes batches of them.
            num_images: of all ranks.
            batch_size: of one batch.
            doing: what the beat is told.
        """
        workers, ranks = self.config.data.num_workers, dist.local_world_size()
        for batch in every_image(maker, num_images, batch_size, workers, ranks, dist.rank(), dist.world_size()):
            yield batch
            self.beat(doing)

    def say_best(self, metric: str) -> None:
        """Log a share, such as `eval/top1`, at the last step and at its best step; rank 0.

        The best step is picked on the evaluation images themselves, so it is only reported; the last one is published.
        """
        scores = {
            point["step"]: point["metrics"][metric] for point in read_points(self.folder) if metric in point["metrics"]
        }
        if not scores:
            return
        best, last = max(scores, key=lambda step: scores[step]), max(scores)
        self.tracker.log_metrics({f"{metric}_best": scores[best]}, last)
        told = (metric, 100 * scores[last], last, 100 * scores[best], best)
        logger.info("%s: %.2f %% at the last step (%d, published); best %.2f %% at step %d", *told)

    def tell_origin(self, name: str, scores: Mapping[str, float]) -> None:
        """Add an encoder's scores to the run that trained it, as `eval/NAME_SCORE`, like all readouts; rank 0.

        Args:
            name: one of the kind's `told_as`.
        """
        source = self.config.student.init_from
        origin = None if source is None else run_of(source)
        if source is None or origin is None or CHECKPOINTS_FOLDER in Path(source).parts:
            return  # a checkpoint on the way is not what the run came to
        self.beat("adding scores to the encoder's run")
        try:
            add_to_run(origin, {f"eval/{name}_{key}": score for key, score in scores.items()})
        except (DmtError, OSError) as error:
            logger.warning("%s: its encoder's scores are not added to its run: %s", origin, error)

    def picture(self, draw: Callable[[], None]) -> None:
        """Draw where pictures are wanted, on rank 0; none is a reason to lose a run: what goes wrong is a warning."""
        if not self.config.tracking.pictures:
            return
        try:
            draw()
        except Exception as error:
            logger.warning("%s: no pictures: %s: %s", self.pictures, type(error).__name__, error)


class Judge(Protocol):
    """Judges a run on its validation images; all ranks call all of it."""

    def look_at_images(self) -> None:
        """Before training: decode each validation image and annotation once, so that a broken one is known in time.

        Raises:
            DataError: one can't be read; names it.
        """
        ...

    def evaluate(self, step: int) -> object:
        """Log `eval/*` of all validation images at a step, on the way or at the end."""
        ...

    def finish(self, step: int) -> None:
        """Judge what is published, say how it compares to the best on the way, tell the encoder's run, draw."""
        ...


T = TypeVar("T", bound=AnnotatedTask)
Images = TypeVar("Images", bound=AnnotatedImages)


class AnnotatedKind(ABC, Generic[T, Images]):
    """One kind of annotations and of model that learns them."""

    folder: str
    """Of the whole model beside the encoder's, in a run and its checkpoints; one of `judging.PUBLISHED`."""
    told_as: tuple[str, ...]
    """What stands between `eval/` and a score's name where the encoder's run is told what came of it."""
    images_of_origin = True
    """Whether an encoder that is taken without a recipe learns them from the images of its own run."""
    resizes_positions = False
    """Whether an encoder's positions are interpolated to `data.image_size`, so that it may come from another size."""

    needs_whole_weights: str | None = None
    """Why cut weights (ZeRO-3) would not do, beside a running mean; None: they would."""

    @abstractmethod
    def open(self, config: RunConfig) -> Images:
        """Both splits with their annotations.

        Raises:
            DataError: they are not there, or not what the recipe says.
        """

    def source(self, config: RunConfig, split: Split) -> ImageSource:
        """The images alone of one split, whatever becomes of the other."""
        return open_source(config.data, split)

    def meaning(self, images: Images) -> list[str]:
        """Lines on how the annotations are read."""
        return []

    def doubts(self, config: RunConfig) -> list[str]:
        """Lines on settings that don't seem to go together, for warnings."""
        return []

    def gaps(self, images: Images) -> list[str]:
        """Lines on what the annotations lack, for warnings."""
        return []

    @abstractmethod
    def build(self, config: RunConfig, class_names: Sequence[str]) -> T:
        """The task with its model, on the CPU; seeded before."""

    def train_maker(self, config: RunConfig, images: Images) -> BatchMaker | None:
        """What makes training batches in the loader's processes; None: crops (`Task.crops`) and labels, as always."""
        return None

    @abstractmethod
    def build_judge(self, task: T, images: Images, scene: Scene) -> Judge:
        """What judges the task on `images.test`."""

    @abstractmethod
    def save(
        self, task: T, config: RunConfig, masters: Mapping[str, Tensor], provenance: Mapping[str, Any], folder: Path
    ) -> None:
        """Write the whole model, whole or not at all; on rank 0, while the engine's weights are gathered.

        Args:
            masters: float32 weights of `task.module` by name, of what is trained and of `task.untouched`.
            provenance: what the folder says of how the model was made.
        """

    def averages(self, config: RunConfig) -> bool:
        """Whether a running mean of the weights is kept, judged as `eval/ema_*`, and published."""
        return False

    @abstractmethod
    def stage(self, config: RunConfig) -> str:
        """Which part of the work the run is, in its tags."""

    @abstractmethod
    def recipe_of(self, size: str) -> str:
        """The shipped recipe for an encoder of size `tiny`, `small` or `base`."""

    def suffix(self, config: RunConfig) -> str:
        """What a run's name has behind the encoder's."""
        return self.stage(config)

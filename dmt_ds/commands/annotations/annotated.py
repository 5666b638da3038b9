"""What a task with annotations is made of, for the commands that train, judge and publish; knows no such task.

Each is an `AnnotatedKind` in a file of its own, with its line in `annotated_tasks`, its name in `config.schema`'s
`TaskName` and `ANNOTATED_TASKS`, its section in `RunConfig`, and its folder in `run_files.PUBLISHED`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import BatchMaker
from dmt_ds.data.loader import every_image
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.data.splits import Split
from dmt_ds.engine import dist
from dmt_ds.engine.task import AnnotatedTask, Model

A = TypeVar("A")


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
        config: says how images are seen, and how many at once.
        beat: told after each batch that the rank is alive.
        seen: told how many images more all ranks have seen.
    """

    config: RunConfig
    beat: Callable[[str], None]
    seen: Callable[[int], None] = lambda _count: None

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
            self.seen(len(batch.indices) * dist.world_size())


@dataclass(frozen=True)
class Judgement(Generic[A]):
    """What all validation images come to; the same on every rank, but for `answers`.

    Attributes:
        scores: shares, 0 to 1, by name (`top1`), of the weights that are published.
        told: the scores in words and percent, a line each model that was judged.
        decided_by: which of the scores says what is best.
        answers: what pictures are made of; of this rank's images where `Judge.pictures` joins them.
        prefix: before the names of these scores where others are told too (`ema_` of a running mean).
        others: scores of weights that are not published.
        baselines: what no learning would reach, by name.
    """

    scores: Mapping[str, float]
    told: Sequence[str]
    decided_by: str
    answers: A
    prefix: str = ""
    others: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)


class Judge(Protocol[A]):
    """Judges a model on all validation images; all ranks call all of it. It logs, keeps and trains nothing."""

    @property
    def told_as(self) -> str:
        """One of the kind's `told_as`."""
        ...

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of the files that `pictures` may leave."""
        ...

    def look_at_images(self) -> None:
        """Decode each image and annotation once, so that a broken one is known in time.

        Raises:
            DataError: one can't be read; names it.
        """
        ...

    def judge(self, model: Model, doing: str) -> Judgement[A]:
        """Scores of the task's module, called as `model`; of its running mean too, where it has one.

        Args:
            doing: what is told with each beat.

        Raises:
            DataError: an image can't be read; names it.
        """
        ...

    def pictures(self, judgement: Judgement[A]) -> Callable[[Path], None]:
        """What rank 0 may call with a folder that is there, which then has pictures and tables of a judgement."""
        ...


T = TypeVar("T", bound=AnnotatedTask)
Images = TypeVar("Images", bound=AnnotatedImages)


class AnnotatedKind(ABC, Generic[T, Images]):
    """One kind of annotations and of model that learns them."""

    folder: str
    """Of the whole model beside the encoder's, in a run and its checkpoints; one of `run_files.PUBLISHED`."""
    told_as: tuple[str, ...]
    """What stands between `eval/` and a score's name where the encoder's run is told what came of it."""
    described_in: str
    """File in that folder that says how the model is built and, under `dmt_ds`, of which step it is."""
    shaped_by: tuple[str, ...]
    """Settings, beside those of all kinds, that weights are of: a model that is trained can't have others."""
    may_lack_classes = False
    """Whether images to judge by may lack the last classes."""
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

    def unseen(self, images: Images) -> list[str]:
        """Lines on classes of which there is nothing to learn, or to judge by, for warnings."""
        return []

    def gaps(self, images: Images) -> list[str]:
        """Lines on what the annotations lack, for warnings; may read some of them."""
        return self.unseen(images)

    @abstractmethod
    def build(self, config: RunConfig, class_names: Sequence[str]) -> T:
        """The task with its model, on the CPU; seeded before."""

    @abstractmethod
    def train_maker(self, config: RunConfig, images: Images, task: T) -> BatchMaker:
        """What makes the task's training batches in the loader's processes."""

    @abstractmethod
    def open_validation(self, config: RunConfig) -> ImageSource:
        """The validation split alone, with its annotations; knows the classes' names.

        Raises:
            DataError: it is not there, or nothing can be judged by it.
        """

    @abstractmethod
    def build_judge(self, task: T, images: ImageSource, scene: Scene) -> Judge[Any]:
        """What judges the task on the validation split, as `open` and `open_validation` give it."""

    @abstractmethod
    def save(
        self, task: T, config: RunConfig, masters: Mapping[str, Tensor], provenance: Mapping[str, Any], folder: Path
    ) -> None:
        """Write the whole model, whole or not at all; on rank 0, while the engine's weights are gathered.

        Args:
            masters: float32 weights of `task.module` by name, of what is trained and of `task.untouched`.
            provenance: what the folder says of how the model was made.
        """

    @abstractmethod
    def restore(self, config: RunConfig, folder: Path) -> T:
        """The task with the weights that `save` left in a folder, to be judged; on the CPU.

        Raises:
            WeightsError: a file is missing or damaged, or holds another model.
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

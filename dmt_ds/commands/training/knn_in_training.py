"""k-NN of encoders while they are trained, as `dmt-ds knn` would judge a checkpoint of the moment; knows no method."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dmt_ds.commands.annotations.annotated import Scene
from dmt_ds.commands.training.publish import backbone_state, settled_student
from dmt_ds.config.schema import BadImages, RunConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import EvalBatchMaker
from dmt_ds.data.labels import LabelledImages
from dmt_ds.data.sources import ImageSource
from dmt_ds.downstream.features import FEATURE_KINDS, Features, extract_features
from dmt_ds.downstream.readouts import FrozenReadouts, Scores, metric_name
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.deepspeed.ds_engine import StudentEngine
from dmt_ds.engine.task import Task
from dmt_ds.models.backbone_folder import vit_without_weights
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder
from dmt_ds.models.vit import shape_of
from dmt_ds.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


_BATCHES_BETWEEN_LOOKS = 8


class _StopAsked(Exception):
    """All ranks leave the evaluation: a signal leaves no time for it."""


class EncoderInTraining(NamedTuple):
    """One of those that the run trains, its settings, and where its scores go."""

    config: RunConfig
    task: Task
    engine: StudentEngine
    tracker: Tracker


@dataclass(frozen=True)
class KnnInTraining:
    """Training images vote, validation images are judged; ranks share the images, and all call all of it.

    Attributes:
        beat: told that the rank is alive.
        stop_asked: whether this rank was asked to save and end.
    """

    encoders: Sequence[EncoderInTraining]
    images: LabelledImages
    beat: Callable[[str], None]
    stop_asked: Callable[[], bool]

    def evaluate(self, step: int) -> None:
        """Log `eval/knn_*` of every encoder; trains nothing, and draws no random number that training would miss.

        Left out as soon as a rank is asked to stop: all images may take longer than is left then.

        Raises:
            DataError: a validation image can't be read, or a training image and none may be left out; names it.
            WeightsError: an encoder gives numbers that are not finite.
        """
        try:
            self._evaluate(step)
        except _StopAsked:
            logger.info("step %d: asked to stop, so k-NN is left out", step)

    def _evaluate(self, step: int) -> None:
        for encoder in self.encoders:
            scores = self._scores(encoder, f"evaluating step {step}")
            encoder.tracker.log_metrics(scores, step)
            by_class, by_patches = (100 * scores[metric_name("knn", kind, 1)] for kind in FEATURE_KINDS)
            logger.info(
                "step %d: %s: k-NN top-1 %.2f %% by the class token, %.2f %% by the mean patch token",
                *(step, encoder.config.name, by_class, by_patches),
            )

    def finish(self, step: int) -> None:
        """Judge what is published; the encoder of a run without steps has been judged before."""
        if step:
            self.evaluate(step)

    def _scores(self, encoder: EncoderInTraining, doing: str) -> Scores:
        config, device = encoder.config, encoder.engine.device
        model = _as_published(encoder).to(device)
        scene = Scene(config, self.beat)

        def features_of(source: ImageSource, bad_images: BadImages) -> Features:
            maker = EvalBatchMaker(source, config.data.image_size, config.data.interpolation, bad_images)
            batches = scene.batches(maker, len(source), config.knn.batch_size, doing)
            return extract_features(model, self._until_stopped(batches, device), device)

        readouts = FrozenReadouts(self.images.num_classes, config.knn)
        train = features_of(self.images.train, config.data.bad_images)  # one that is left out has no vote
        test = features_of(self.images.test, "stop")
        return readouts.knn_of_shares(train, test, device, after_each=lambda: self.beat(doing))

    def _until_stopped(self, batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
        """The batches, of which all ranks have equally many, as long as no rank is asked to stop."""
        for number, batch in enumerate(batches):
            if number % _BATCHES_BETWEEN_LOOKS == 0:
                asked = torch.tensor(int(self.stop_asked()), device=device)
                if dist.sum_over_ranks(asked).item():
                    raise _StopAsked
            yield batch


def _as_published(encoder: EncoderInTraining) -> FrozenEncoder:
    """The encoder that a checkpoint of this moment would have, float32; all ranks call."""
    config, task = encoder.config, encoder.task
    masters = encoder.engine.trained_state()
    with ds_engine.gathered(encoder.engine.module):
        backbone = task.backbone()
        section = settled_student(config.student, backbone)
        state = backbone_state(backbone, task.module, masters)
    vit = vit_without_weights(section, config.data.image_size)
    vit.load_state_dict(state, assign=True)
    augment = config.augment
    return FrozenEncoder(vit, EncoderRecord(config.output_dir, "dmt_ds", shape_of(vit), augment.mean, augment.std))

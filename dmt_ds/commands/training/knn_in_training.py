"""k-NN of encoders while they are trained, as `dmt-ds knn` would judge a checkpoint of the moment; knows no method."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dmt_ds.commands.annotations.annotated import AnnotatedImages, Scene
from dmt_ds.commands.training.publish import backbone_state, settled_student
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch_maker import EvalBatchMaker
from dmt_ds.data.sources import ImageSource
from dmt_ds.downstream.features import FEATURE_KINDS, Features, extract_features
from dmt_ds.downstream.readouts import FrozenReadouts, Scores, metric_name
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.deepspeed.ds_engine import StudentEngine
from dmt_ds.engine.task import Task
from dmt_ds.models.backbone_folder import vit_without_weights
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder
from dmt_ds.models.vit import shape_of
from dmt_ds.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


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
    """

    encoders: Sequence[EncoderInTraining]
    images: AnnotatedImages
    beat: Callable[[str], None]

    def evaluate(self, step: int) -> None:
        """Log `eval/knn_*` of every encoder; trains nothing, and draws no random number that training would miss.

        Raises:
            DataError: an image can't be read; names it.
            WeightsError: an encoder gives numbers that are not finite.
        """
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

        def features_of(source: ImageSource) -> Features:
            maker = EvalBatchMaker(source, config.data.image_size, config.data.interpolation)
            return extract_features(model, scene.batches(maker, len(source), config.knn.batch_size, doing), device)

        readouts = FrozenReadouts(len(self.images.class_names), config.knn)
        train, test = features_of(self.images.train), features_of(self.images.test)
        return readouts.knn_of_shares(train, test, device, after_each=lambda: self.beat(doing))


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

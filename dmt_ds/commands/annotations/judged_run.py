"""A run that is judged while it trains and at its end: what a judge finds goes into the run's record and folder."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmt_ds.commands.annotations.annotated import Judge, Judgement
from dmt_ds.commands.run_folder import add_to_run, run_of
from dmt_ds.config.schema import RunConfig
from dmt_ds.engine import dist
from dmt_ds.engine.task import Model
from dmt_ds.errors import DmtError
from dmt_ds.run_files import CHECKPOINTS_FOLDER, PICTURES_FOLDER
from dmt_ds.tracking.tracker import Tracker, read_points

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgedRun:
    """A judge at work on a run; all ranks call all of it.

    Attributes:
        engine: the trained module, as the task calls it.
        folder: of the run.
        beat: told that the rank is alive.
    """

    judge: Judge[Any]
    engine: Model
    config: RunConfig
    folder: Path
    tracker: Tracker
    beat: Callable[[str], None]

    def evaluate(self, step: int) -> Judgement[Any]:
        """Log `eval/*` of all validation images at a step, on the way or at the end."""
        judgement = self.judge.judge(self.engine, f"evaluating step {step}")
        for line in judgement.told:
            logger.info("step %d: %s", step, line)
        scores = {f"{judgement.prefix}{name}": score for name, score in judgement.scores.items()}
        self.tracker.log_metrics(
            {f"eval/{name}": score for name, score in {**judgement.others, **scores}.items()}, step
        )
        return judgement

    def finish(self, step: int) -> None:
        """Judge what is published, say how it compares to the best on the way, tell the encoder's run, draw."""
        judgement = self.evaluate(step)
        draw = self.judge.pictures(judgement)
        if not dist.is_main():
            return
        if judgement.baselines:
            told = ", ".join(f"{name} {100 * score:.2f} %" for name, score in judgement.baselines.items())
            logger.info("without learning: %s", told)
            self.tracker.log_metrics({f"eval/{name}": score for name, score in judgement.baselines.items()}, step)
        self._say_best(f"eval/{judgement.prefix}{judgement.decided_by}")
        self._tell_origin(judgement)
        if self.config.tracking.pictures:
            draw_or_warn(draw, self.folder / PICTURES_FOLDER)

    def _say_best(self, metric: str) -> None:
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

    def _tell_origin(self, judgement: Judgement[Any]) -> None:
        """Add an encoder's scores to the run that trained it, as `eval/NAME_SCORE`, like all readouts; rank 0."""
        source = self.config.student.init_from
        origin = None if source is None else run_of(source)
        if source is None or origin is None or CHECKPOINTS_FOLDER in Path(source).parts:
            return  # a checkpoint on the way is not what the run came to
        self.beat("adding scores to the encoder's run")
        name = self.judge.told_as
        try:
            add_to_run(origin, {f"eval/{name}_{key}": score for key, score in judgement.scores.items()})
        except (DmtError, OSError) as error:
            logger.warning("%s: its encoder's scores are not added to its run: %s", origin, error)


def draw_or_warn(draw: Callable[[Path], None], folder: Path) -> None:
    """Draw on rank 0; no picture is a reason to lose a run, or its scores: what goes wrong is a warning."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw(folder)
    except Exception as error:
        logger.warning("%s: no pictures: %s: %s", folder, type(error).__name__, error)

"""`dmt-ds evaluate`: every frozen readout of encoders in one call, kept with the run that an encoder comes from.

Features are taken once an encoder; which readouts there are, and their names, is said in `downstream.readouts`.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dmt_ds.commands.readouts.judging import (
    Encoder,
    features_of,
    is_judged_as_run,
    load_judged,
    named_images,
    named_run,
    open_judged,
    refuse_missing,
)
from dmt_ds.commands.run_folder import add_to_run, step_of_run
from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.config.schema import DataConfig
from dmt_ds.data.labels import LabelledImages
from dmt_ds.downstream.readouts import Scores, frozen_readouts
from dmt_ds.models.teachers import TeacherModel
from dmt_ds.run_files import EVALUATION_FILE
from dmt_ds.tracking.journal import write_atomically

logger = logging.getLogger(__name__)


_COLUMNS = {
    "k-NN class": "eval/knn_top1",
    "k-NN patch": "eval/knn_patch_top1",
    "linear class": "eval/linear_top1",
    "linear patch": "eval/linear_patch_top1",
}


class EvaluationRow(NamedTuple):
    """One encoder's result."""

    encoder: str
    scores: Scores


class EvaluationTable(NamedTuple):
    """Results of several encoders on the same images; `str` gives what the command line prints."""

    rows: tuple[EvaluationRow, ...]
    num_train_images: int
    num_test_images: int
    num_classes: int
    knn: KnnConfig
    linear: LinearConfig
    images: str
    """What they are: kind of source, and place."""

    def __str__(self) -> str:
        """A line on the protocol, then top-1 of the four readouts, an encoder a line, in percent."""
        width = max(len("encoder"), *(len(row.encoder) for row in self.rows))
        lines = [
            f"top-1 % by k-NN (k {self.knn.k}, T {self.knn.temperature:g}) and linear probe (weight decay "
            f"{self.linear.weight_decay:g}) on class token and mean patch token, on {self.images}: "
            f"{self.num_train_images} training and {self.num_test_images} test images, {self.num_classes} classes",
            "  ".join([f"{'encoder':{width}}", *_COLUMNS]),
        ]
        for name, scores in self.rows:
            numbers = [f"{100 * scores[metric]:{len(title)}.2f}" for title, metric in _COLUMNS.items()]
            lines.append("  ".join([f"{name:{width}}", *numbers]))
        return "\n".join(lines)


def run(
    data: DataConfig,
    knn: KnnConfig,
    linear: LinearConfig,
    encoders: Mapping[str, Encoder],
    device: torch.device,
    again: bool = False,
) -> EvaluationTable:
    """Judge encoders one after the other; scores of a run's folder go to its MLflow run and `evaluation.json`.

    Those of other images or settings than the run's own are only returned.

    Args:
        data: the images; all of the training split is used unless `max_train_images` says less.
        knn: its protocol; both kinds of features are judged, whatever `knn.features` says.
        linear: its protocol.
        encoders: name for the table -> what is judged; one is in memory at a time where they are not modules.
        device: where encoders run, votes are counted and probes are fitted.
        again: evaluate also where a run's folder has the scores of this encoder, these images and settings.

    Raises:
        DataError: there are no images, no labels, or the splits have different classes.
        WeightsError: an encoder can't be loaded.
    """
    refuse_missing(encoders, data.image_size)
    images = open_judged(data)
    protocol = _Protocol(images, data, knn, linear)
    rows = []
    for name, encoder in encoders.items():
        module = load_judged(name, encoder, data.image_size)
        folder = named_run(encoder)
        if folder is None:
            scores = protocol.judge(module, device)
        else:
            scores = _judge_run(folder, module, protocol, device, again)
        logger.info("%s: k-NN top-1 %.2f %%", name, 100 * scores["eval/knn_top1"])
        rows.append(EvaluationRow(name, scores))
    sizes = len(images.train), len(images.test), images.num_classes
    return EvaluationTable(tuple(rows), *sizes, knn, linear, named_images(data))


@dataclass(frozen=True)
class _Protocol:
    """On what encoders are judged, and how."""

    images: LabelledImages
    data: DataConfig
    knn: KnnConfig
    linear: LinearConfig

    def judge(self, module: nn.Module | None, device: torch.device) -> Scores:
        """All readouts, from one pass over the images."""
        train, test = (
            features_of(module, source, self.data, self.knn.batch_size, device)
            for source in (self.images.train, self.images.test)
        )
        return frozen_readouts(train, test, self.images.num_classes, self.knn, self.linear, device)

    def as_record(self) -> dict[str, Any]:
        """All of it that moves a score, as JSON has it."""
        return {
            "data": {
                "train": self.images.train.fingerprint,
                "validation": self.images.test.fingerprint,
                **self.data.model_dump(mode="json", include={"image_size", "interpolation"}),
            },
            "knn": self.knn.model_dump(mode="json", include={"k", "temperature"}),
            "linear": self.linear.model_dump(mode="json"),
        }


def _judge_run(
    folder: Path, module: nn.Module | None, protocol: _Protocol, device: torch.device, again: bool
) -> Scores:
    """Scores of a run's encoder, from `evaluation.json` where an earlier call left them."""
    encoder = module.record.sha256 if isinstance(module, TeacherModel) else None
    made_from = {"encoder_sha256": encoder, "step": step_of_run(folder), **protocol.as_record()}
    kept = None if again else _kept_scores(folder, made_from)
    if kept is not None:
        logger.info(
            "%s: evaluated before on the same images with the same settings; --again evaluates it again", folder
        )
        return kept
    train = protocol.images.train.fingerprint
    is_own = is_judged_as_run(folder, train, protocol.data, protocol.knn, protocol.linear)
    scores = protocol.judge(module, device)
    if not is_own:
        return scores
    add_to_run(folder, scores)  # before the file, which says that all is done
    write_atomically(folder / EVALUATION_FILE, json.dumps({"scores": scores, "made_from": made_from}, indent=1) + "\n")
    return scores


def _kept_scores(folder: Path, made_from: Mapping[str, Any]) -> Scores | None:
    """What the folder's file says, if it was made from the same."""
    try:
        kept = json.loads((folder / EVALUATION_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return kept["scores"] if kept.get("made_from") == made_from else None

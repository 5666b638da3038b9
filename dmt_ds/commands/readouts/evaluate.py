"""`dmt-ds evaluate`: every frozen readout of encoders in one call, kept with the run that an encoder comes from.

Features are taken once an encoder; which readouts there are, and their names, is said in `downstream.readouts`.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmt_ds.commands.readouts.frozen_encoders import Encoder, load_for_readout, named_run
from dmt_ds.commands.readouts.frozen_protocol import EncoderScores, FrozenProtocol, ReadoutTable, open_protocol
from dmt_ds.commands.run_folder import add_to_run, step_of_run
from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.config.schema import DataConfig
from dmt_ds.downstream.readouts import Scores, metric_name
from dmt_ds.models.encoders import FrozenEncoder
from dmt_ds.run_files import EVALUATION_FILE
from dmt_ds.tracking.journal import write_atomically

logger = logging.getLogger(__name__)


_COLUMNS = {
    "k-NN class": metric_name("knn", "class", 1),
    "k-NN patch": metric_name("knn", "patch_mean", 1),
    "linear class": metric_name("linear", "class", 1),
    "linear patch": metric_name("linear", "patch_mean", 1),
}


def run(
    data: DataConfig,
    knn: KnnConfig,
    linear: LinearConfig,
    encoders: Mapping[str, Encoder],
    device: torch.device,
    again: bool = False,
) -> ReadoutTable:
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
    protocol = open_protocol(encoders, data, device, knn, linear)
    rows = []
    for name, encoder in encoders.items():
        module, folder = load_for_readout(name, encoder, data.image_size), named_run(encoder)
        scores = protocol.judge(module) if folder is None else _judge_run(folder, module, protocol, again)
        logger.info("%s: k-NN top-1 %.2f %%", name, 100 * scores[metric_name("knn", "class", 1)])
        rows.append(EncoderScores(name, scores))
    readouts = (
        f"top-1 % by k-NN (k {knn.k}, T {knn.temperature:g}) and linear probe (weight decay {linear.weight_decay:g}) "
        "on class token and mean patch token,"
    )
    return protocol.table(readouts, _COLUMNS, rows)


def _judge_run(folder: Path, module: nn.Module | None, protocol: FrozenProtocol, again: bool) -> Scores:
    """Scores of a run's encoder, from `evaluation.json` where an earlier call left them."""
    encoder = module.record.sha256 if isinstance(module, FrozenEncoder) else None
    made_from = {"encoder_sha256": encoder, "step": step_of_run(folder), **_all_that_moves_a_score(protocol)}
    kept = None if again else _kept_scores(folder, made_from)
    if kept is not None:
        logger.info(
            "%s: evaluated before on the same images with the same settings; --again evaluates it again", folder
        )
        return kept
    is_own = protocol.is_of_run(folder)
    scores = protocol.judge(module)
    if not is_own:
        return scores
    add_to_run(folder, scores)  # before the file, which says that all is done
    write_atomically(folder / EVALUATION_FILE, json.dumps({"scores": scores, "made_from": made_from}, indent=1) + "\n")
    return scores


def _all_that_moves_a_score(protocol: FrozenProtocol) -> dict[str, Any]:
    """Images and settings, as JSON has them."""
    images, readouts = protocol.images, protocol.readouts
    assert readouts.linear is not None, "evaluate fits probes"
    return {
        "data": {
            "train": images.train.fingerprint,
            "validation": images.test.fingerprint,
            **protocol.data.model_dump(mode="json", include={"image_size", "interpolation"}),
        },
        "knn": readouts.knn.model_dump(mode="json", include={"k", "temperature"}),
        "linear": readouts.linear.model_dump(mode="json"),
    }


def _kept_scores(folder: Path, made_from: Mapping[str, Any]) -> Scores | None:
    """What the folder's file says, if it was made from the same."""
    try:
        kept = json.loads((folder / EVALUATION_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return kept["scores"] if kept.get("made_from") == made_from else None

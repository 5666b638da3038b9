"""`dmt-ds knn`: k-NN accuracy of frozen encoders by one kind of feature, added to the run an encoder comes from."""

import logging
from collections.abc import Mapping

import torch

from dmt_ds.commands.readouts.frozen_encoders import Encoder, load_for_readout, named_run
from dmt_ds.commands.readouts.frozen_protocol import EncoderScores, ReadoutTable, open_protocol
from dmt_ds.commands.run_folder import add_to_run
from dmt_ds.config.evaluation import KnnConfig
from dmt_ds.config.schema import DataConfig
from dmt_ds.downstream.readouts import metric_name

logger = logging.getLogger(__name__)


def run_knn(
    data: DataConfig,
    knn: KnnConfig,
    encoders: Mapping[str, Encoder],
    device: torch.device,
) -> ReadoutTable:
    """Evaluate encoders one after the other: training images vote, validation images are judged.

    Scores of a run's folder are added to its MLflow run, if images and settings are the run's own.

    Args:
        data: the images; all of the training split is used unless `max_train_images` says less.
        knn: the protocol.
        encoders: name for the table -> what is judged; one is in memory at a time where they are not modules.
        device: where encoders and votes are computed.

    Raises:
        DataError: there are no images, no labels, or the splits have different classes.
        WeightsError: an encoder can't be loaded.
    """
    protocol = open_protocol(encoders, data, device, knn, kinds=(knn.features,))
    top1, top5 = metric_name("knn", knn.features, 1), metric_name("knn", knn.features, 5)
    rows = []
    for name, encoder in encoders.items():
        module, run = load_for_readout(name, encoder, data.image_size), named_run(encoder)
        is_own = run is not None and protocol.is_of_run(run)
        scores = protocol.judge(module)
        logger.info("%s: k-NN top-1 %.2f %%, top-5 %.2f %%", name, 100 * scores[top1], 100 * scores[top5])
        rows.append(EncoderScores(name, scores))
        if run is not None and is_own:
            add_to_run(run, scores)
    readouts = f"k-NN (k {knn.k}, T {knn.temperature:g}, {knn.features} features)"
    return protocol.table(readouts, {"top-1 %": top1, "top-5 %": top5}, rows)

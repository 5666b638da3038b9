"""What a run on digits says of its encoder's k-NN on the way, and what `dmt-ds knn` says of what it published."""

import json
from pathlib import Path

import torch

from dmt_ds.commands.readouts.knn import run_knn
from dmt_ds.config.load import config_from_yaml
from dmt_ds.downstream.features import FEATURE_KINDS


def knn_points(run: Path) -> dict[int, tuple[float, float]]:
    """Step -> top-1 by class token and by mean patch token, from metrics.jsonl."""
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        point["step"]: (point["metrics"]["eval/knn_top1"], point["metrics"]["eval/knn_patch_top1"])
        for point in points
        if "eval/knn_top1" in point["metrics"]
    }


def knn_of_published(run: Path) -> tuple[float, float]:
    """The same of the encoder in the run's folder."""
    config = config_from_yaml((run / "config.yaml").read_text())
    scores: dict[str, float] = {}
    for kind in FEATURE_KINDS:
        protocol = config.knn.model_copy(update={"features": kind})
        scores |= run_knn(config.data, protocol, {"it": str(run / "backbone")}, torch.device("cpu")).rows[0].scores
    return scores["eval/knn_top1"], scores["eval/knn_patch_top1"]

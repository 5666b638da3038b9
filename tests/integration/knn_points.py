"""What a run on digits says of its encoder's k-NN on the way, and what `dmt-ds knn` says of what it published."""

import json
from pathlib import Path

import torch

from dmt_ds.commands.readouts.knn import run_knn
from dmt_ds.config.load import config_from_yaml


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
    by_class, by_patches = (
        run_knn(
            config.data,
            config.knn.model_copy(update={"features": kind}),
            {"it": str(run / "backbone")},
            torch.device("cpu"),
        )
        .rows[0]
        .scores.top1
        for kind in ("class", "patch_mean")
    )
    return by_class, by_patches

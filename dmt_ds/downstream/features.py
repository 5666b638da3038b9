"""Images become feature vectors of a frozen encoder; knows no file, no classifier."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from dmt_ds.data.batch import Batch
from dmt_ds.errors import DataError, WeightsError

logger = logging.getLogger(__name__)

FeatureKind = Literal["class", "patch_mean"]

_SECONDS_BETWEEN_LINES = 10.0


def extract_features(
    encoder: nn.Module, batches: Iterable[Batch], kind: FeatureKind, device: torch.device
) -> tuple[Tensor, Tensor]:
    """One vector an image, from an encoder in evaluation mode without gradient.

    Args:
        encoder: uint8 images [B, 3, H, W] -> tokens [B, 1+N, D]; is left on `device`, in the mode it came in.
        batches: every image once.
        kind: `class` takes the class token, `patch_mean` the mean of the patch tokens.
        device: where the encoder runs.

    Returns:
        Features [n, D] float32 and labels [n] int64, both on the CPU, in the order of the batches.

    Raises:
        WeightsError: the encoder gives numbers that are not finite.
        DataError: there is no image.
    """
    was_training = encoder.training
    encoder.to(device).eval()
    try:
        with torch.inference_mode():
            features, labels = _collect(batches, lambda images: _pooled(encoder(images.to(device)), kind))
    finally:
        encoder.train(was_training)
    if not features.isfinite().all():
        bad_rows = (~features.isfinite().all(dim=1)).sum().item()
        raise WeightsError(
            f"encoder gives NaN or infinity for {bad_rows} of {len(features)} images; its weights are broken"
        )
    return features, labels


def pixel_features(batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """The images themselves as features, for the baseline: [n, 3*H*W] float32 in 0..1 and labels [n]."""
    return _collect(batches, lambda images: images.flatten(1).float() / 255)


def _pooled(tokens: Tensor, kind: FeatureKind) -> Tensor:
    """[B, 1+N, D] -> [B, D] float32."""
    return tokens[:, 0].float() if kind == "class" else tokens[:, 1:].float().mean(dim=1)


def _collect(batches: Iterable[Batch], features_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    features: list[Tensor] = []
    labels: list[Tensor] = []
    num_images, start = 0, time.monotonic()
    next_line = start + _SECONDS_BETWEEN_LINES
    for batch in batches:
        features.append(features_of(batch.images).cpu())
        labels.append(batch.labels.cpu())
        num_images += len(batch.labels)
        if (now := time.monotonic()) >= next_line:
            logger.info("features of %d images, %.0f images/s", num_images, num_images / (now - start))
            next_line = now + _SECONDS_BETWEEN_LINES
    if not features:
        raise DataError("there is no image to take features of; check data.path and the split's name")
    return torch.cat(features), torch.cat(labels)

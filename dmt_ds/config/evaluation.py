"""Settings of the readouts that judge frozen features; `schema` puts them into a run."""

from typing import Literal

from dmt_ds.config.section import Count, Positive, Section

_WHOLE_BELOW = 64


def eval_short_side(image_size: int) -> int:
    """What a picture's short side is scaled to before its middle is judged, in pixels: 256 for 224, as is usual.

    Below 64 pixels there is no margin to lose, and it is the side of the square itself.
    """
    return round(image_size * 256 / 224) if image_size >= _WHOLE_BELOW else image_size


class KnnConfig(Section):
    """k-nearest-neighbour classification on frozen features (DINO's protocol)."""

    k: Count = 20
    """Neighbours that vote."""
    temperature: Positive = 0.07
    """Temperature T of the votes' weights exp(cosine / T)."""
    features: Literal["class", "patch_mean"] = "class"
    """What `dmt-ds knn` compares: the class token, or the mean of the patch tokens; after the final norm, without
    adapter. `dmt-ds evaluate` judges both."""
    batch_size: Count = 256
    """Images per batch when features are computed, for every readout."""


class LinearConfig(Section):
    """Softmax regression on frozen, standardised features: the minimum of a convex loss, found by L-BFGS."""

    weight_decay: Positive = 1e-4
    """L2 penalty: half of it times the squared weights is added to the mean cross-entropy; the bias has none."""
    max_iterations: Count = 300
    """Most steps of L-BFGS, each one or a few passes over all features; it stops earlier at the minimum."""

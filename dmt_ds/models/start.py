"""A student that starts from given weights: those of its own shape, at its own grid or another; knows no method."""

import dataclasses
from typing import Any

from torch import nn

from dmt_ds.errors import WeightsError
from dmt_ds.models.encoders import EncoderRecord, load_encoder
from dmt_ds.models.patch_grid import resized_positions
from dmt_ds.models.vit import shape_of


def start_from(vit: nn.Module, source: str, image_size: int | None) -> None:
    """Copies an encoder's weights into a ViT of the same shape (`student.init_from`); `origin_of` then says whose.

    Args:
        image_size: of the run, which the encoder must have, in pixels; None takes any, and interpolates positions.

    Raises:
        WeightsError: the source has another shape; both are named.
    """
    encoder = load_encoder(source, image_size, "student.init_from")
    own, theirs = shape_of(vit), encoder.record.shape
    state = encoder.vit.state_dict()
    if image_size is None and own.patch_size == theirs.patch_size and "pos_embed" in state:
        state["pos_embed"] = resized_positions(
            state["pos_embed"], theirs.num_prefix_tokens, own.image_size // own.patch_size
        )
        theirs = dataclasses.replace(theirs, image_size=own.image_size)
    differing = [
        f"{key} {getattr(own, key)} against {value}"
        for key, value in dataclasses.asdict(theirs).items()
        if getattr(own, key) != value
    ]
    shapes = [{f"'{key}' {list(v.shape)}" for key, v in weights.items()} for weights in (vit.state_dict(), state)]
    differing += [f"{key} on one side only" for key in sorted(shapes[0] ^ shapes[1])[:3]]
    if differing:
        raise WeightsError(f"student.init_from {source}: the student is another ViT: {', '.join(differing)}")
    vit.load_state_dict(state, strict=True)
    any_vit: Any = vit
    any_vit.origin = encoder.record  # goes with its copies, such as a momentum network


def origin_of(vit: nn.Module) -> EncoderRecord | None:
    """What a ViT's weights started from, as it was read then; None where they are its own."""
    record: EncoderRecord | None = getattr(vit, "origin", None)
    return record

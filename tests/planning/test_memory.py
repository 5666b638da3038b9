"""A GPU's memory part by part, against what ZeRO leaves of a parameter on a rank (Rajbhandari et al., 2020)."""

from typing import Any

import pytest

from dmt_ds.planning.layout import Layout
from dmt_ds.planning.memory import USABLE_SHARE, image_bytes, largest_micro_batch, state_bytes, total_bytes
from dmt_ds.planning.vit_cost import AdapterSize, VitSize

RANKS, SHARD_RANKS = 8, 4
WIDE, NARROW = VitSize(768, 12, 16, 224), VitSize(384, 12, 16, 224)
VIT_B_BLOCK = 4 * (768 * 768 + 768) + 2 * (768 * 3072) + 3072 + 768 + 2 * 2 * 768
"""Parameters: q, k, v and projection; fc1 and fc2 with their biases; two norms."""


def layout(stage: int = 2, precision: str = "bf16", student: VitSize = NARROW, **changes: Any) -> Layout:
    """A student of ZeRO's `stage`; what is left of `changes` goes into the JSON's section of ZeRO."""
    own = {name: changes.pop(name) for name in ("shard_ranks", "fused_loss", "sharded_teachers") if name in changes}
    zero = {"stage": stage, "contiguous_gradients": True, "reduce_bucket_size": 1e7, **changes}
    config = {"bf16": {"enabled": precision == "bf16"}, "zero_optimization": zero}
    settings = {"sharded_teachers": True, "shard_ranks": SHARD_RANKS} | own
    adapters = (AdapterSize(student.embed_dim, 768),)
    return Layout({"narrow": NARROW, "wide": WIDE}, student, (768,), adapters, 2, config, **settings)


@pytest.mark.parametrize(
    ("precision", "stage", "weights", "gradient", "masters", "moments"),
    [
        ("fp32", 1, 4, 4 + 4, 4 / RANKS, 8 / RANKS),
        ("bf16", 1, 2, 2 + 4, 4 / RANKS, 8 / RANKS),
        ("bf16", 2, 2, 2 + 4 / RANKS, 4 / RANKS, 8 / RANKS),
        ("bf16", 3, 2 / RANKS, 2 + 4 / RANKS, 4 / RANKS, 8 / RANKS),
    ],
)
def test_a_parameter_takes_the_bytes_that_its_stage_leaves_on_a_rank(
    precision: str, stage: int, weights: float, gradient: float, masters: float, moments: float
) -> None:
    planned = layout(stage, precision)
    found = state_bytes([planned], RANKS)
    parts = ("student's weights", "gradient", "float32 masters", "AdamW's moments")
    assert [found[part] / planned.trained_parameters for part in parts] == [weights, gradient, masters, moments]


def test_without_zero_in_float32_the_weights_are_their_own_masters_and_nothing_is_cut() -> None:
    planned = layout(0, "fp32")
    found = state_bytes([planned], RANKS)
    assert found["float32 masters"] == found["gradient buckets"] == 0
    assert found["AdamW's moments"] == 8 * planned.trained_parameters


@pytest.mark.parametrize(
    ("stage", "zero", "numbers"),
    [
        (1, {}, 1e7),
        (2, {}, 1e7),
        (2, {"overlap_comm": True}, 2e7),  # one is filled while the other is sent
        # those that wait for their bucket to be full, and flat copies of all that are on their way
        (2, {"contiguous_gradients": False}, 1e7 + layout().trained_parameters),
        (2, {"contiguous_gradients": False, "reduce_bucket_size": 1e12}, 2 * layout().trained_parameters),
        (3, {}, 0),
    ],
)
def test_buckets_hold_as_many_float32_numbers_as_the_json_says(
    stage: int, zero: dict[str, Any], numbers: float
) -> None:
    assert state_bytes([layout(stage, **zero)], RANKS)["gradient buckets"] == 4 * numbers


def test_teachers_are_cut_over_the_ranks_that_share_a_copy_and_two_blocks_of_the_widest_are_whole() -> None:
    found = state_bytes([layout()], RANKS)
    assert found["teachers' weights"] == 2 * (WIDE.parameters() + NARROW.parameters()) / SHARD_RANKS
    assert found["teachers' gathered blocks"] == 2 * 2 * VIT_B_BLOCK
    for whole in (layout(sharded_teachers=False), layout(shard_ranks=1)):
        found = state_bytes([whole], RANKS)
        assert found["teachers' weights"] == 2 * (WIDE.parameters() + NARROW.parameters())
        assert found["teachers' gathered blocks"] == 0


def test_of_each_image_live_one_teachers_activations_the_target_with_its_loss_and_the_jitters_copies() -> None:
    numbers = (1 + 14 * 14) * 768  # of the sum of the teachers
    for fused, loss in ((True, 4 + 2 + 2), (False, 4 + 2 + 40 + 24)):  # of one loss; of another, on log steps
        found = image_bytes([layout(fused_loss=fused)])
        assert found["teachers' activations"] == WIDE.alive_bytes(2)
        assert found["targets and loss"] == loss * numbers
        assert found["images"] == 24 * 3 * 224 * 224


def test_the_largest_micro_batch_divides_a_ranks_images_and_leaves_room_for_fragments() -> None:
    layouts = [layout()]
    needed = total_bytes(layouts, RANKS, 32) / USABLE_SHARE
    assert largest_micro_batch(layouts, RANKS, 96 * RANKS, 1.0001 * needed) == 32
    assert largest_micro_batch(layouts, RANKS, 96 * RANKS, 0.9999 * needed) == 24
    assert largest_micro_batch(layouts, RANKS, 96 * RANKS, 1e6) == 0  # not even one
    assert largest_micro_batch(layouts, RANKS, 96 * RANKS + 1, 1e15) == 0  # ranks can't share these

"""What ranks send in an update and how long it takes, part by part, against the same sums by hand."""

from typing import Any

import pytest

from dmt_ds.planning.gpus import Gpu
from dmt_ds.planning.layout import Cluster, Layout
from dmt_ds.planning.rates import STUDENT_UTILISATION, Calibration, Rates, assumed, at_width, calibrated
from dmt_ds.planning.schedule import sharding_cost, step_time
from dmt_ds.planning.traffic import step_traffic
from dmt_ds.planning.vit_cost import AdapterSize, VitSize

ACCUMULATION, MICRO_BATCH = 3, 4
WIDE, NARROW = VitSize(768, 12, 16, 224), VitSize(384, 12, 16, 224)
NODE, TWO_NODES = Cluster(1, 8), Cluster(2, 8)
RATES = Rates(
    teacher_flops=7e13, student_flops=3e13, memory_bytes=2e12, link_bytes=4e11, network_bytes=5e10, loader_seconds=1e-3
)


def layout(stage: int = 2, precision: str = "bf16", **changes: Any) -> Layout:
    config = {"bf16": {"enabled": precision == "bf16"}, "zero_optimization": {"stage": stage}}
    config["communication_data_type"] = changes.pop("sends", "fp32")
    settings = {"sharded_teachers": True, "shard_ranks": 8, "fused_loss": True} | changes
    return Layout({"narrow": NARROW, "wide": WIDE}, NARROW, (768,), (AdapterSize(384, 768),), 2, config, **settings)


@pytest.mark.parametrize(
    ("stage", "sends", "gradient", "weights"),
    [
        (0, "fp32", 2 * 4, 0),  # an all-reduce, of float32, once
        (1, "fp32", 2 * 4, 2),  # then the new weights, in bf16
        (1, "bf16", 2 * 2, 2),
        (2, "fp32", ACCUMULATION * 2 * 4, 2),  # each micro-batch is reduced
        (3, "fp32", ACCUMULATION * 4, ACCUMULATION * 2 * 2),  # reduce-scatter; forward and backward gather
    ],
)
def test_a_stage_sends_its_bytes_of_a_parameter_as_often_as_it_must(
    stage: int, sends: str, gradient: float, weights: float
) -> None:
    planned = layout(stage, sends=sends)
    sent = step_traffic([planned], NODE, ACCUMULATION)
    part = planned.trained_parameters * 7 / 8
    assert (sent.gradient, sent.weights) == pytest.approx((gradient * part, weights * part))
    copies = 2 * (WIDE.parameters() + NARROW.parameters())
    assert sent.teachers == pytest.approx(ACCUMULATION * copies * 7 / 8)
    assert sent.total == pytest.approx(sent.teachers + sent.gradient + sent.weights)


@pytest.mark.parametrize(("fused", "moved"), [(True, 18), (False, 297)])
def test_arithmetic_and_memory_take_their_time_for_every_image_of_the_update(fused: bool, moved: int) -> None:
    planned, images = layout(fused_loss=fused), MICRO_BATCH * ACCUMULATION
    slower = Rates(**{**vars(RATES), "student_flops": 1e13})
    found = step_time([planned, planned], NODE, [RATES, slower], MICRO_BATCH, ACCUMULATION)
    assert found.teachers == pytest.approx(images * (WIDE.forward_flops() + NARROW.forward_flops()) / 7e13)
    adapter = 3 * 2 * 197 * 384 * 768
    student = NARROW.training_flops() + adapter
    assert found.student == pytest.approx(images * (student / 3e13 + student / 1e13))
    assert found.loss == pytest.approx(2 * images * 197 * 768 * moved / 2e12)


@pytest.mark.parametrize(("stage", "share"), [(0, 1.0), (1, 1 / 8), (2, 1 / 8), (3, 1 / 8)])
def test_a_rank_updates_its_part_of_the_weights(stage: int, share: float) -> None:
    planned = layout(stage)
    found = step_time([planned], NODE, [RATES], MICRO_BATCH, ACCUMULATION)
    assert found.optimizer == pytest.approx(30 * share * planned.trained_parameters / 2e12)


@pytest.mark.parametrize("teacher_flops", [1e12, 1e17])
def test_gathers_of_teachers_hide_behind_their_arithmetic_as_far_as_it_lasts(teacher_flops: float) -> None:
    """Shared within a node they go through its links; the gradient of two nodes through the network."""
    rates = Rates(**{**vars(RATES), "teacher_flops": teacher_flops})
    sent = step_traffic([layout()], TWO_NODES, ACCUMULATION)
    found = step_time([layout()], TWO_NODES, [rates], MICRO_BATCH, ACCUMULATION)
    gathering = sent.teachers / 4e11
    shown = 0 if gathering < found.teachers else gathering - found.teachers
    assert (shown > 0) == (teacher_flops == 1e17)
    assert found.communication == pytest.approx(shown + (sent.gradient + sent.weights) / 5e10)


def test_a_network_that_is_faster_than_the_links_waits_for_them() -> None:
    rates = Rates(**{**vars(RATES), "network_bytes": 9e11})
    sent = step_traffic([layout(sharded_teachers=False)], TWO_NODES, 1)
    found = step_time([layout(sharded_teachers=False)], TWO_NODES, [rates], MICRO_BATCH, 1)
    assert found.communication == pytest.approx((sent.gradient + sent.weights) / 4e11)


def test_what_sharding_costs_is_of_one_micro_batch() -> None:
    found = sharding_cost(layout(), TWO_NODES, RATES, MICRO_BATCH, 8e10)
    copies = 2 * (WIDE.parameters() + NARROW.parameters())
    assert (found.copy_bytes, found.memory_bytes, found.num_ranks) == (copies, 8e10, 8)
    assert found.gather_seconds == pytest.approx(copies * 7 / 8 / 4e11)
    assert found.forward_seconds == pytest.approx(MICRO_BATCH * (WIDE.forward_flops() + NARROW.forward_flops()) / 7e13)


def test_data_sheets_are_in_their_own_units_and_each_side_has_its_share() -> None:
    gpu = Gpu(memory_gb=80, bf16_tflops=100, memory_tbps=2, link_gbps=300)
    found = assumed(gpu, teacher_width=768, student_width=384, network_gbit=400)
    assert found.teacher_flops == pytest.approx(0.51 * 1e14) and found.student_flops == pytest.approx(0.22 * 1e14)
    assert found.memory_bytes == pytest.approx(2e12)
    assert found.link_bytes == pytest.approx(0.75 * 300e9)
    assert found.network_bytes == pytest.approx(0.75 * 50e9)  # 8 bits a byte


@pytest.mark.parametrize(
    ("width", "share"), [(64, 0.11), (192, 0.11), (240, 0.11 + 0.11 / 4), (384, 0.22), (1024, 0.39), (2048, 0.39)]
)
def test_a_share_lies_on_the_line_between_its_neighbours_of_the_table(width: int, share: float) -> None:
    assert at_width(STUDENT_UTILISATION, width) == pytest.approx(share)


def test_each_measured_rate_takes_the_place_of_its_own() -> None:
    found = calibrated(RATES, Calibration("H", "2026-01-01", 8, 1.0, 2.0, 3.0, 4.0))
    taken = (found.teacher_flops, found.student_flops, found.loader_seconds, found.link_bytes)
    assert taken == (1.0, 2.0, 3.0, 4.0)
    assert (found.memory_bytes, found.network_bytes) == (RATES.memory_bytes, RATES.network_bytes)

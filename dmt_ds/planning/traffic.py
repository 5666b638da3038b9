"""Bytes that each rank sends in one update, part by part; plain formulas."""

from collections.abc import Sequence
from typing import NamedTuple

from dmt_ds.planning.layout import Cluster, Layout
from dmt_ds.planning.vit_cost import ring_bytes


class Traffic(NamedTuple):
    """Bytes of one rank and update."""

    teachers: float
    """Gathers of cut teachers: each of them once a micro-batch."""
    gradient: float
    """Reduction of the student's gradient."""
    weights: float
    """Gathers of the student's weights: after the update, or with ZeRO-3 in each forward and backward."""

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self)


def step_traffic(layouts: Sequence[Layout], cluster: Cluster, grad_accum_steps: int) -> Traffic:
    """Bytes of one update with so many micro-batches; several layouts are the students of the same teachers."""
    first = layouts[0]
    teachers = ring_bytes(first.teacher_copy_bytes, first.shard_ranks) if first.sharded_teachers else 0.0
    students = [_student_traffic(layout, cluster, grad_accum_steps) for layout in layouts]
    gradients, weights = (sum(parts) for parts in zip(*students, strict=True))
    return Traffic(grad_accum_steps * teachers, gradients, weights)


def _student_traffic(layout: Layout, cluster: Cluster, grad_accum_steps: int) -> tuple[float, float]:
    """Bytes of the gradient's reduction, and of gathers of weights."""
    ranks, parameters = cluster.num_ranks, layout.trained_parameters
    sends = {"bf16": 2, "fp16": 2}.get(layout.ds_config.get("communication_data_type", ""), 4)
    weights = ring_bytes(layout.student_bytes * parameters, ranks)
    reduced = ring_bytes(sends * parameters, ranks, reduces=True)
    # ZeRO-2 and 3 keep no whole gradient to accumulate in, so they reduce each micro-batch. DeepSpeed's ZeRO-2 does it
    # by all-reduce of a bucket (`use_multi_rank_bucket_allreduce`), ZeRO-3 by reduce-scatter.
    by_stage = {
        0: (reduced, 0.0),
        1: (reduced, weights),
        2: (grad_accum_steps * reduced, weights),
        3: (grad_accum_steps * reduced / 2, 2 * grad_accum_steps * weights),
    }
    return by_stage[layout.zero_stage]

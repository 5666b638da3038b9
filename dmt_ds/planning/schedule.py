"""How long an update takes, part by part, and so a run; plain formulas."""

from collections.abc import Sequence
from dataclasses import dataclass

from dmt_ds.planning.layout import Cluster, Layout
from dmt_ds.planning.rates import Rates
from dmt_ds.planning.sharding import ShardingCost
from dmt_ds.planning.traffic import step_traffic
from dmt_ds.planning.vit_cost import ring_bytes

WRITTEN_LOSS_BYTES_MOVED = 297
"""A number of the target: what both losses, written out in torch, read and write (counted in the dispatcher)."""
FUSED_LOSS_BYTES_MOVED = 18
"""The same of a fused kernel: both sides read twice, once for sums and once for the gradient, which is written."""
OPTIMIZER_BYTES_MOVED = 30
"""A parameter that a rank updates: gradient, master and moments read; master, moments and weight written."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one update on each GPU."""

    teachers: float
    student: float
    loss: float
    optimizer: float
    communication: float
    """What hides behind nothing."""

    @property
    def total(self) -> float:
        """Seconds of all parts, one after the other."""
        return self.teachers + self.student + self.loss + self.optimizer + self.communication


def teacher_flops(layout: Layout) -> float:
    """Operations of one image in all teachers."""
    return sum(size.forward_flops() for size in layout.teachers.values())


def student_flops(layout: Layout) -> float:
    """Operations of one image in the student and its adapters, forward and backward."""
    student = layout.student
    return student.training_flops() + sum(adapter.training_flops(student.num_tokens) for adapter in layout.adapters)


def step_time(
    layouts: Sequence[Layout], cluster: Cluster, rates: Sequence[Rates], micro_batch_size: int, grad_accum_steps: int
) -> StepTime:
    """Seconds of one update; several layouts are the students of the same teachers, each with its rates.

    Teachers' gathers hide behind the teachers' arithmetic as far as that lasts. The gather of new weights hides behind
    nothing; the gradient's reduction, which runs beside the backward pass, is counted as if it did so too.
    """
    images, first, speed = micro_batch_size * grad_accum_steps, layouts[0], rates[0]
    teachers = images * teacher_flops(first) / speed.teacher_flops
    students = sum(student_flops(layout) / own.student_flops for layout, own in zip(layouts, rates, strict=True))
    traffic = step_traffic(layouts, cluster, grad_accum_steps)
    beyond_teachers = traffic.teachers / _ring_bytes_per_second(first.shard_ranks, cluster, speed) - teachers
    link = _ring_bytes_per_second(cluster.num_ranks, cluster, speed)
    exposed = max(0.0, beyond_teachers) + (traffic.gradient + traffic.weights) / link
    updated = sum(layout.trained_parameters / (cluster.num_ranks if layout.zero_stage else 1) for layout in layouts)
    return StepTime(
        teachers=teachers,
        student=images * students,
        loss=images * sum(_loss_bytes_moved(layout) for layout in layouts) / speed.memory_bytes,
        optimizer=OPTIMIZER_BYTES_MOVED * updated / speed.memory_bytes,
        communication=exposed,
    )


def sharding_cost(layout: Layout, cluster: Cluster, rates: Rates, micro_batch_size: int, memory: float) -> ShardingCost:
    """What `teachers.sharding: auto` weighs.

    Args:
        memory: of a GPU, in bytes.
    """
    gathered = ring_bytes(layout.teacher_copy_bytes, layout.shard_ranks)
    return ShardingCost(
        layout.shard_ranks,
        layout.teacher_copy_bytes,
        memory,
        gather_seconds=gathered / _ring_bytes_per_second(layout.shard_ranks, cluster, rates),
        forward_seconds=micro_batch_size * teacher_flops(layout) / rates.teacher_flops,
        rates="planned",
    )


def _ring_bytes_per_second(num_ranks: int, cluster: Cluster, rates: Rates) -> float:
    """A ring over several nodes leaves each of them over one edge, and so through its network once."""
    within = num_ranks <= cluster.gpus_per_node
    return rates.link_bytes if within else min(rates.link_bytes, rates.network_bytes)


def _loss_bytes_moved(layout: Layout) -> int:
    """Of one image."""
    return layout.target_numbers * (FUSED_LOSS_BYTES_MOVED if layout.fused_loss else WRITTEN_LOSS_BYTES_MOVED)

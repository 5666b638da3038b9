"""Memory of one GPU, part by part; plain formulas.

Several layouts are the students of a family, with the same teachers: all of their states lie on a GPU at once, but of
their activations only one student's.
"""

from collections.abc import Sequence

from dmt_ds.planning.layout import Layout

RESERVED_BYTES = 2e9
"""CUDA's context, cuBLAS's workspaces, communicators."""
USABLE_SHARE = 0.92
"""Usable share of the card's memory; the rest is lost to fragmentation."""
WRITTEN_LOSS_BYTES = 40 + 24
"""Beyond the tokens, a number of the target and a loss written out in torch: float32 softmaxes of both sides, along
both axes; then, on log steps, those of one loss more while the others wait (counted in the dispatcher)."""
JITTER_BYTES = 24
"""A colour value of an image: uint8, and the float32 copies that colour jitter makes."""


def state_bytes(layouts: Sequence[Layout], num_ranks: int) -> dict[str, float]:
    """What does not depend on the batch: teachers, and the students' states as their ZeRO stages cut them."""
    first = layouts[0]
    teachers = first.teacher_copy_bytes / (first.shard_ranks if first.sharded_teachers else 1)
    students = [_student_state_bytes(layout, num_ranks) for layout in layouts]
    return {
        "teachers' weights": teachers,
        "teachers' gathered blocks": _gathered_bytes(first),
        **{part: sum(student[part] for student in students) for part in students[0]},
        "reserved": RESERVED_BYTES,
    }


def _student_state_bytes(layout: Layout, num_ranks: int) -> dict[str, float]:
    stage, parameters, weight = layout.zero_stage, layout.trained_parameters, layout.student_bytes
    zero = layout.ds_config.get("zero_optimization", {})
    optimizer_ranks = num_ranks if stage >= 1 else 1
    gradient_ranks = num_ranks if stage >= 2 else 1
    has_masters = stage >= 1 or weight == 2
    bucket = float(zero.get("reduce_bucket_size", 5e8)) if stage in (1, 2) else 0.0
    if not zero.get("contiguous_gradients", True):
        waiting = min(bucket, parameters)
        bucket = waiting + (parameters if num_ranks > 1 else waiting)  # and flat copies that are on their way
    return {
        "student's weights": weight * parameters / (num_ranks if stage == 3 else 1),
        "gradient": weight * parameters + 4 * parameters / gradient_ranks,
        "gradient buckets": 4 * bucket * (2 if zero.get("overlap_comm") else 1),
        "float32 masters": 4 * parameters / optimizer_ranks if has_masters else 0.0,
        "AdamW's moments": 8 * parameters / optimizer_ranks,
    }


def image_bytes(layouts: Sequence[Layout]) -> dict[str, float]:
    """What each image of a micro-batch adds, at the peak of forward and backward."""
    first = layouts[0]
    return {
        "student's activations": max(layout.student.saved_bytes(layout.student_bytes) for layout in layouts),
        "teachers' activations": max(size.alive_bytes(first.teacher_bytes) for size in first.teachers.values()),
        "targets and loss": max(_loss_bytes(layout) * layout.target_numbers for layout in layouts),
        "images": JITTER_BYTES * 3 * first.student.image_size**2,
    }


def total_bytes(layouts: Sequence[Layout], num_ranks: int, micro_batch_size: int) -> float:
    """Bytes that one GPU needs."""
    each = sum(image_bytes(layouts).values())
    return sum(state_bytes(layouts, num_ranks).values()) + micro_batch_size * each


def largest_micro_batch(layouts: Sequence[Layout], num_ranks: int, global_batch_size: int, memory_bytes: float) -> int:
    """The largest micro-batch that fits and keeps the global batch exact; 0 where not even one image fits."""
    images_a_rank, left = divmod(global_batch_size, num_ranks)
    if left:
        return 0
    sizes = (size for size in range(images_a_rank, 0, -1) if images_a_rank % size == 0)
    usable = USABLE_SHARE * memory_bytes
    return next((size for size in sizes if total_bytes(layouts, num_ranks, size) <= usable), 0)


def _loss_bytes(layout: Layout) -> int:
    """A number of the target: itself in float32, the student's, and what the loss makes; fused, only a gradient."""
    return 4 + layout.student_bytes + (layout.student_bytes if layout.fused_loss else WRITTEN_LOSS_BYTES)


def _gathered_bytes(layout: Layout) -> float:
    """Two blocks of the widest teacher are whole at a time (`resolve_teacher`)."""
    if not layout.sharded_teachers or layout.shard_ranks == 1:
        return 0.0
    return 2 * layout.teacher_bytes * max(size.block_parameters for size in layout.teachers.values())

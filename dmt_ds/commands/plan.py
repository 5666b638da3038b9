"""`dmt-ds plan`: what a recipe would need on a cluster, from formulas; imports no torch, loads no weights."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dmt_ds.commands.training.pretraining_methods import method_of
from dmt_ds.config.batch import plan_batch, plan_length
from dmt_ds.config.deepspeed import find_ds_config, named_ds_config, precision, resolve_student
from dmt_ds.config.schema import TEACHER_TASKS, RunConfig
from dmt_ds.errors import ConfigError
from dmt_ds.planning import memory, schedule
from dmt_ds.planning.gpus import Gpu, gpu_named
from dmt_ds.planning.layout import (
    Cluster,
    Layout,
    adapter_sizes,
    has_fused_loss,
    student_size,
    target_widths,
    teacher_sizes,
)
from dmt_ds.planning.rates import Calibration, Rates, assumed, calibrated
from dmt_ds.planning.sharding import ShardingCost
from dmt_ds.planning.traffic import step_traffic

_ALWAYS = (
    "each step takes teachers, student, loss, optimizer and communication one after the other; teachers' gathers hide "
    "behind teachers' arithmetic",
    "attention is fused and no activation is computed twice",
    "the loader keeps up, if it has the cores",
)
_TINYMIM = "tinymim is counted as dmt is: with an adapter, and the rest of the last block, neither of which it trains"


@dataclass(frozen=True)
class Machines:
    """What is planned for.

    Attributes:
        gpu: a name of `planning.gpus.GPUS`.
        network_gbit: that a node sends, in 10^9 bits a second.
        num_images: of the data set.
        calibration: file of `dmt-ds bench`; None assumes rates.
    """

    cluster: Cluster
    gpu: str
    network_gbit: float
    num_images: int
    calibration: Path | None = None


def make_plan(config: RunConfig, machines: Machines) -> dict[str, Any]:
    """Memory, traffic, time and assumptions, as plain values: bytes, seconds, hours.

    Raises:
        ConfigError: the task has no teachers, the batch does not divide, or the GPU, the calibration or the student's
            size is unknown.
    """
    if config.task not in TEACHER_TASKS:
        raise ConfigError(f"task {config.task}: `dmt-ds plan` knows the cost of distillation only (dmt, tinymim)")
    cluster, gpu, train = machines.cluster, gpu_named(machines.gpu), config.train
    ranks = cluster.num_ranks
    batch = plan_batch(train.global_batch_size, train.micro_batch_size, ranks)
    layouts, guesses = _layouts(config, cluster)
    length = plan_length(train, config.optim, machines.num_images)
    rates = [_rates(layout, gpu, machines, is_family=len(layouts) > 1) for layout in layouts]
    cost = schedule.sharding_cost(layouts[0], cluster, rates[0], batch.micro_batch_size, 1e9 * gpu.memory_gb)
    layouts, sharding = _sharded(layouts, config.teachers.sharding, cost)
    seconds = schedule.step_time(layouts, cluster, rates, batch.micro_batch_size, batch.grad_accum_steps)
    images_per_second = train.global_batch_size / seconds.total
    hours = length.total_steps * seconds.total / 3600
    total = memory.total_bytes(layouts, ranks, batch.micro_batch_size)
    each = {name: batch.micro_batch_size * size for name, size in memory.image_bytes(layouts).items()}
    teachers = layouts[0].teachers.values()
    losses = "fused" if layouts[0].fused_loss else "written out in torch"
    return {
        "model": "formulas, not a measurement",
        "run": {"name": config.name, "steps": length.total_steps, "global_batch_size": train.global_batch_size},
        "machines": {"nodes": cluster.num_nodes, "gpus_per_node": cluster.gpus_per_node, "gpu": machines.gpu},
        "measured_on": None if machines.calibration is None else Calibration.read(machines.calibration).device,
        "parameters": {
            "trained": sum(layout.trained_parameters for layout in layouts),
            "teachers": sum(size.parameters() for size in teachers),
        },
        "memory_bytes": {**memory.state_bytes(layouts, ranks), **each, "total": total, "of": 1e9 * gpu.memory_gb},
        "fits": total <= memory.USABLE_SHARE * 1e9 * gpu.memory_gb,
        "micro_batch_size": batch.micro_batch_size,
        "grad_accum_steps": batch.grad_accum_steps,
        "largest_micro_batch_size": memory.largest_micro_batch(
            layouts, ranks, train.global_batch_size, 1e9 * gpu.memory_gb
        ),
        "step_bytes_sent": step_traffic(layouts, cluster, batch.grad_accum_steps)._asdict(),
        "step_seconds": {**asdict(seconds), "total": seconds.total},
        "flops_per_image": {
            "teachers": schedule.teacher_flops(layouts[0]),
            "student": sum(schedule.student_flops(layout) for layout in layouts),
        },
        "images_per_second": images_per_second,
        "hours": hours,
        "gpu_hours": hours * ranks,
        "loader_cores_per_node": images_per_second / cluster.num_nodes * rates[0].loader_seconds,
        "assumptions": [
            *sharding,
            *_sources(config, rates),
            f"{machines.num_images} images",
            f"the losses are {losses}",
            *(f"teacher {name} is a ViT-B/16: neither its source nor `arch` tells" for name in guesses),
            *([_TINYMIM] if config.task == "tinymim" else []),
            *_ALWAYS,
        ],
    }


def _rates(layout: Layout, gpu: Gpu, machines: Machines, *, is_family: bool) -> Rates:
    width = max(size.embed_dim for size in layout.teachers.values())
    rates = assumed(gpu, width, layout.student.embed_dim, machines.network_gbit)
    if machines.calibration is None:
        return rates
    found = Calibration.read(machines.calibration)
    # What was measured of one student holds for no other.
    return calibrated(rates, replace(found, student_flops=None) if is_family else found)


def _sources(config: RunConfig, rates: list[Rates]) -> list[str]:
    """Where each rate is from, once: a family's students, which are named, share most."""
    named = zip(config.students(), rates, strict=True)
    return list(
        dict.fromkeys(
            f"student {member}: {source}" if member and name == "student" else f"{name}: {source}"
            for member, own in named
            for name, source in own.sources.items()
        )
    )


def _layouts(config: RunConfig, cluster: Cluster) -> tuple[list[Layout], list[str]]:
    """One, or one a member of a family; and the teachers whose size is a guess."""
    found = [_layout(student, cluster) for student in config.students().values()]
    return [layout for layout, _ in found], found[0][1]


def _sharded(layouts: list[Layout], setting: str, cost: ShardingCost) -> tuple[list[Layout], list[str]]:
    """With `auto`, teachers as a run would have them that finds these costs; and why, in a line."""
    if setting != "auto":
        return layouts, []
    choice, why = cost.choose()
    decided = [replace(layout, sharded_teachers=choice == "zero3") for layout in layouts]
    return decided, [f"teachers.sharding auto -> {choice}: {why}; the run itself decides by rates that it measures"]


def _layout(config: RunConfig, cluster: Cluster) -> tuple[Layout, list[str]]:
    train, section = config.train, config.teachers
    batch = plan_batch(train.global_batch_size, train.micro_batch_size, cluster.num_ranks)
    student = student_size(config.student, config.data.image_size)
    teachers, guesses = teacher_sizes(section, config.student.patch_size, config.data.image_size)
    targets = target_widths(config.distill, teachers)
    shard_ranks = cluster.gpus_per_node if section.shard_over == "node" else cluster.num_ranks
    layout = Layout(
        teachers=teachers,
        student=student,
        target_widths=targets,
        adapters=adapter_sizes(student, config.student, targets),
        teacher_bytes=2 if precision(named_ds_config(section.deepspeed)) == "bf16" else 4,
        ds_config=resolve_student(find_ds_config(train.deepspeed), batch, config.optim.clip_grad_norm),
        sharded_teachers=section.sharding == "zero3",
        shard_ranks=shard_ranks,
        fused_loss=method_of(config).adds_tokens and has_fused_loss(config.distill),
    )
    return layout, guesses


def render(plan: dict[str, Any]) -> str:
    """The plan in lines for people."""
    run, machines = plan["run"], plan["machines"]
    stored, sent, times = plan["memory_bytes"], plan["step_bytes_sent"], plan["step_seconds"]
    ranks = machines["nodes"] * machines["gpus_per_node"]
    lines = [
        "A model made of formulas, not a measurement.",
        f"{run['name']}: {run['steps']} steps of {run['global_batch_size']} images on {machines['nodes']} x "
        f"{machines['gpus_per_node']} {machines['gpu']}",
        *([f"Speeds are those of {plan['measured_on']}: times hold for as many of these."] * bool(plan["measured_on"])),
        "",
        f"memory of a GPU, micro-batch {plan['micro_batch_size']}",
        *(_line(name, f"{size / 1e9:8.2f} GB") for name, size in stored.items() if name not in ("total", "of")),
        _line("total", f"{stored['total'] / 1e9:8.2f} GB of {stored['of'] / 1e9:g}: {_verdict(plan)}"),
        _line(
            "micro-batch",
            f"{plan['micro_batch_size']:5d} x {plan['grad_accum_steps']} accumulation; {_largest(plan, ranks)}",
        ),
        "",
        "sent by a GPU each step",
        *(_line(name, f"{size / 1e6:8.1f} MB") for name, size in sent.items()),
        "",
        "time of a step",
        *(_line(name, f"{1000 * seconds:8.1f} ms") for name, seconds in times.items()),
        "",
        _line(
            "images per second", f"{plan['images_per_second']:8,.0f} ({plan['images_per_second'] / ranks:,.0f} per GPU)"
        ),
        _line("hours", f"{plan['hours']:8.1f}, {plan['gpu_hours']:,.0f} GPU-hours"),
        _line("loader", f"{plan['loader_cores_per_node']:8.0f} CPU cores per node"),
        "",
        "assumed",
        *(f"  {assumption}" for assumption in plan["assumptions"]),
    ]
    return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"  {name:<26}{value}"


def _verdict(plan: dict[str, Any]) -> str:
    return "fits" if plan["fits"] else "does not fit"


def _largest(plan: dict[str, Any], ranks: int) -> str:
    largest = plan["largest_micro_batch_size"]
    if not largest:
        return "not even one image fits"
    accumulation = plan["run"]["global_batch_size"] // (largest * ranks)
    if accumulation == 1:
        return f"{largest} x 1, the whole global batch, fits"
    return f"the largest that fits is {largest} x {accumulation}"

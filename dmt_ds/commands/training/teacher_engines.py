"""A run's teachers, from the recipe to their engines; knows no method."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_ds.commands.training.compiling import compiles
from dmt_ds.commands.training.teacher_sharding import choose_sharding
from dmt_ds.config.deepspeed import DsConfig, find_ds_config, read_ds_config, resolve_teacher
from dmt_ds.config.teachers import TeachersConfig
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_teachers
from dmt_ds.engine.deepspeed.ds_check import check_ds_config
from dmt_ds.errors import ConfigError
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder, load_teacher
from dmt_ds.models.packed_linear import pack_linear, packing_pays
from dmt_ds.models.plain_vit import has_plain_blocks
from dmt_ds.models.product_sums import add_in_products, adding_in_products_pays
from dmt_ds.models.products import fuse_gelu, fusing_gelu_pays
from dmt_ds.models.relations import RelationEncoder
from dmt_ds.models.vit import VitShape

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherEngines:
    """Teachers that are ready to be asked; by name, in the recipe's order."""

    forwards: dict[str, Callable[..., Tensor]]
    """uint8 images [B, 3, H, W] -> what the teacher's module gives."""
    records: dict[str, EncoderRecord]
    ds_configs: dict[str, DsConfig]
    """Each teacher's DeepSpeed JSON, resolved."""


def load_teachers(section: TeachersConfig, image_size: int) -> dict[str, FrozenEncoder]:
    """The teachers that the recipe uses, on the CPU.

    Args:
        image_size: side of the run's images, in pixels.
    """
    models = {name: load_teacher(name, teacher, image_size) for name, teacher in section.used().items()}
    for name, model in models.items() if dist.is_main() else ():
        if line := guess_of(name, model.record):
            logger.warning("%s", line)
    return models


def guess_of(name: str, record: EncoderRecord) -> str | None:
    """A line on a teacher whose heads nobody said, with the key to set; other heads give other tokens, and no error."""
    if not record.guessed_heads:
        return None
    heads, width = record.shape.num_heads, record.shape.embed_dim
    return (
        f"{name}: num_heads {heads} is a guess from the width, {width}: the file does not tell; if right, confirm it "
        f"by teachers.models.{name}.num_heads={heads}, else give the right one"
    )


def check_same_grid(student: VitShape, teachers: Mapping[str, FrozenEncoder]) -> None:
    """Tokens are compared position by position.

    Raises:
        ConfigError: names both sides.
    """
    for name, teacher in teachers.items():
        shape = teacher.record.shape
        if (shape.image_size, shape.patch_size) != (student.image_size, student.patch_size):
            raise ConfigError(
                f"student.patch_size {student.patch_size} cuts {student.image_size} pixels into another grid than "
                f"teacher '{name}' (patch {shape.patch_size}, image {shape.image_size}); "
                f"set student.patch_size={shape.patch_size}"
            )


def start_teachers(
    teachers: Mapping[str, FrozenEncoder], section: TeachersConfig, device: torch.device, micro_batch_size: int
) -> TeacherEngines:
    """Each teacher in an engine of its own, in the recipe's order: building one is a collective."""
    read_inside = any(isinstance(teacher, RelationEncoder) for teacher in teachers.values())
    backend = "inductor" if compiles(section.compile, "teachers", device, read_inside=read_inside) else None
    path = find_ds_config(section.deepspeed)
    records = {name: teacher.record for name, teacher in teachers.items()}
    ds_configs = {name: resolve_teacher(path, record.shape.embed_dim) for name, record in records.items()}
    for ds_config in ds_configs.values():
        check_ds_config(path, ds_config)
    dtype = ds_teachers.weights_dtype(read_ds_config(path))
    sharding = choose_sharding(teachers, section, device, dtype, micro_batch_size)
    forwards: dict[str, Callable[..., Tensor]] = {}
    for name, teacher in teachers.items():
        if fusing_gelu_pays(device, dtype):
            fuse_gelu(teacher)
        own_backend = None if _add_in_products(teacher, device, dtype) else backend
        if sharding == "zero3":
            engine = ds_teachers.build_teacher(
                teacher, ds_configs[name], device, shard_over=section.shard_over, compile_backend=own_backend
            )
        else:
            engine = ds_teachers.replicate_teacher(teacher, ds_configs[name], device, compile_backend=own_backend)
        forwards[name] = engine
        held, full = ds_teachers.held_bytes(teacher)
        if held == full and packing_pays(device, dtype):
            shape = teacher.record.shape
            pack_linear(teacher, micro_batch_size * (shape.num_tokens - 1 + shape.num_prefix_tokens))
        logger.info("teacher %s: %.1f of %.1f MiB on this rank", name, held / 2**20, full / 2**20)
    return TeacherEngines(forwards, records, ds_configs)


def _add_in_products(teacher: FrozenEncoder, device: torch.device, dtype: torch.dtype) -> bool:
    """Where that pays and this teacher allows it; whether it was done. It leaves a compiler nothing to gain."""
    done = (
        adding_in_products_pays(device, dtype)
        and type(teacher) is FrozenEncoder  # others read inside
        and has_plain_blocks(teacher.vit)
    )
    if done:
        add_in_products(teacher.vit)
    return done

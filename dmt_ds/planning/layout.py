"""A run seen as sizes: what of a recipe decides memory, traffic and time; no torch, and of weights only shapes."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmt_ds.config.deepspeed import precision, zero_stage
from dmt_ds.config.methods import DistillConfig
from dmt_ds.config.schema import StudentConfig
from dmt_ds.config.teachers import TeachersConfig
from dmt_ds.errors import ConfigError
from dmt_ds.planning.vit_cost import AdapterSize, VitSize
from dmt_ds.run_files import BACKBONE_FOLDER

_ARCHES = {
    "tiny": (192, 12),
    "small": (384, 12),
    "medium": (512, 12),
    "base": (768, 12),
    "large": (1024, 24),
    "huge": (1280, 32),
    "giant": (1408, 40),
}  # width, depth
_NAME = re.compile(rf"(?:vit|deit3?)_({'|'.join(_ARCHES)})(?=_|\.|$)")
_OTHER_SHAPE = re.compile(r"_plus_|_\d+x\d_")
"""In names of timm's: wider than the size says, or of blocks side by side."""
_PATCH = re.compile(r"patch(\d+)")


@dataclass(frozen=True)
class Cluster:
    """Machines that are alike."""

    num_nodes: int
    gpus_per_node: int

    @property
    def num_ranks(self) -> int:
        """Number of ranks, one a GPU."""
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True)
class Layout:
    """What is trained on what.

    Attributes:
        teachers: by name.
        student: its ViT.
        target_widths: of all that it learns to give.
        adapters: of the targets that have one.
        teacher_bytes: of a number in a teacher.
        ds_config: the student's DeepSpeed JSON.
        sharded_teachers: whether their weights are cut.
        shard_ranks: ranks that share one cut copy.
        fused_loss: whether both losses are computed at once, with their gradient, or as written.
    """

    teachers: dict[str, VitSize]
    student: VitSize
    target_widths: tuple[int, ...]
    adapters: tuple[AdapterSize, ...]
    teacher_bytes: int
    ds_config: dict[str, Any]
    sharded_teachers: bool
    shard_ranks: int
    fused_loss: bool = False

    @property
    def student_bytes(self) -> int:
        """Bytes of a number in the student's weights and tokens."""
        return 2 if precision(self.ds_config) == "bf16" else 4

    @property
    def zero_stage(self) -> int:
        """ZeRO stage of the student's engine."""
        return zero_stage(self.ds_config)

    @property
    def adapter_parameters(self) -> int:
        """Parameters of all adapters."""
        return sum(adapter.parameters() for adapter in self.adapters)

    @property
    def trained_parameters(self) -> int:
        """Parameters that have a gradient; fixed positions have none."""
        return self.student.parameters(trained_positions=False) + self.adapter_parameters

    @property
    def teacher_copy_bytes(self) -> int:
        """Bytes of whole copies of all teachers."""
        return self.teacher_bytes * sum(size.parameters() for size in self.teachers.values())

    @property
    def target_numbers(self) -> int:
        """Numbers of one image's targets: N + 1 tokens of each target's width."""
        return self.student.num_tokens * sum(self.target_widths)


def student_size(section: StudentConfig, image_size: int) -> VitSize:
    """The student, as the recipe has it.

    Raises:
        ConfigError: neither the name of its architecture nor the recipe says how wide and deep it is.
    """
    named = _shape_named(section.arch)
    width, depth = section.embed_dim or (named and named[0]), section.depth or (named and named[1])
    if width is None or depth is None:
        known = ", ".join(f"vit_{size}" for size in _ARCHES)
        raise ConfigError(
            f"student.arch={section.arch}: how wide and deep it is, is known of {known} and deit_ alike, not of it: "
            "for `dmt-ds plan` add student.embed_dim=WIDTH student.depth=BLOCKS"
        )
    return VitSize(width, depth, section.patch_size, image_size)


def teacher_sizes(section: TeachersConfig, patch_size: int, image_size: int) -> tuple[dict[str, VitSize], list[str]]:
    """Teachers by what their folder or file says, else by what `arch` or the source is called.

    Returns:
        Name -> size, and the names of those that had to be guessed (ViT-B).
    """
    sizes: dict[str, VitSize] = {}
    guessed = []
    for name, teacher in section.used().items():
        text = teacher.arch or Path(teacher.source).name  # folders on the way there may be called after others
        source = Path(teacher.source).expanduser()
        if (own := _of_folder(source, image_size) or _of_safetensors(source, image_size)) is not None:
            sizes[name] = own
            continue
        shape = _shape_named(text)
        if shape is None:
            guessed.append(name)
        width, depth = shape or _ARCHES["base"]
        patch = _PATCH.search(text)
        sizes[name] = VitSize(width, depth, int(patch[1]) if patch else patch_size, image_size)
    return sizes, guessed


def target_widths(distill: DistillConfig, teachers: dict[str, VitSize]) -> tuple[int, ...]:
    """Widths of the targets: one a teacher with fusion `concat`, one of the sum otherwise."""
    widths = tuple(size.embed_dim for size in teachers.values())
    return widths if distill.fusion == "concat" else widths[:1]


def adapter_sizes(student: VitSize, section: StudentConfig, targets: tuple[int, ...]) -> tuple[AdapterSize, ...]:
    """The student's adapters, by the widths of its targets; some need none."""
    kind, width = section.adapter, student.embed_dim
    always = kind not in ("auto", "identity")
    return tuple(
        AdapterSize(width, target, has_norm=kind == "ln_linear", has_second=kind == "mlp")
        for target in targets
        if always or target != width
    )


def has_fused_loss(section: DistillConfig) -> bool:
    """Whether a run of task dmt on CUDA computes both losses by a fused kernel (`distill.kernel: auto`)."""
    both = section.tfd_weight > 0 and section.sfd_weight > 0
    return section.kernel != "eager" and section.divergence == "kl" and both


def _of_folder(folder: Path, image_size: int) -> VitSize | None:
    """The encoder of a run's output folder, where it says its sizes."""
    path = folder / BACKBONE_FOLDER / "config.json"
    if not path.is_file():
        return None
    model = json.loads(path.read_text()).get("model_args", {})
    if not {"embed_dim", "depth", "patch_size"} <= model.keys():
        return None
    return VitSize(model["embed_dim"], model["depth"], model["patch_size"], image_size)


def _of_safetensors(path: Path, image_size: int) -> VitSize | None:
    """A file under timm's names, as `dmt-ds teachers convert` writes it, by the shapes that it begins with.

    None for what is no such file after all, such as a pointer of git-lfs: loading it will say so.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < path.stat().st_size else {}
        width, _, _, patch_size = header["patch_embed.proj.weight"]["shape"]  # [D, 3, P, P]
    except (ValueError, KeyError, TypeError):
        return None
    depth = len({block[1] for key in header if (block := re.match(r"blocks\.(\d+)\.", key))})
    return VitSize(width, depth, patch_size, image_size)


def _shape_named(text: str) -> tuple[int, int] | None:
    found = _NAME.search(text)
    return None if found is None or _OTHER_SHAPE.search(text) else _ARCHES[found[1]]

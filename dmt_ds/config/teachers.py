"""The section `teachers`: the frozen encoders that a student learns from."""

from typing import Literal

from pydantic import Field, ValidationInfo, model_validator

from dmt_ds.config.section import Count, NonNegative, Positive, Section, Triple, is_to_be_trained


class TeacherConfig(Section):
    """One frozen encoder."""

    source: str
    """`timm:TAG`, `hf:ID_OR_FOLDER`, a weights file (official MAE, MoCo v3, iBOT, DINO, BEiT, DeiT layouts) or the
    output folder of a run."""
    arch: str | None = None
    """timm architecture of a weights file; null infers it from the tensors' shapes (head width 64 unless `num_heads`
    is set)."""
    num_heads: Count | None = None
    """Number of heads, which a weights file does not contain (MoCo v3's ViT-S has 12, timm's 6). For transformers'
    `model.safetensors` it is read from the config.json next to it, if that fits."""
    checkpoint_key: str | None = None
    """Which part of a full checkpoint to load: `teacher`, `student`, `base_encoder`, `momentum_encoder`; null takes the
    usual one of the layout."""
    mean: Triple | None = None
    """Mean of its own normalisation; null takes the source's, else ImageNet's."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of its own normalisation; null takes the source's, else ImageNet's."""
    licence: str | None = None
    """SPDX id of the weights' licence, kept in the run's record; null takes what is known about the source."""
    resize_positions: bool = False
    """Interpolate its positions to the grid of `data.image_size`, for weights of another image size, such as DINOv2's
    518 pixels."""
    weight: NonNegative = 1.0
    """Weight of its tokens in the fused sum; with fusion `concat`, of its losses."""
    class_token: bool = True
    """Whether its class token is part of the fused class token."""


class TeachersConfig(Section):
    """The teachers, and how their weights are spread over the devices."""

    models: dict[str, TeacherConfig] = Field(default={})
    """Name -> teacher; they run in this order."""
    use: tuple[str, ...] | None = None
    """Names of the teachers to use; null uses all."""
    sharding: Literal["zero3", "replicate", "auto"] = "zero3"
    """`zero3` shards every teacher over the ranks; `replicate` keeps whole copies; `auto` shards them if copies take
    much of a device's memory and gathering hides behind arithmetic, and logs its reason."""
    shard_over: Literal["node", "world"] = "node"
    """The ranks that share one sharded copy: those of a node (weights don't cross the network each step), or all."""
    deepspeed: str = "teacher_zero3_inference"
    """DeepSpeed JSON of the teachers: a name in ds_configs/ or a path."""
    compile: bool = False
    """torch.compile the teachers, whole copies in one piece and sharded ones block by block; like `train.compile`, has
    no effect where it can't run, nor for task tinymim, which reads inside their last block. Plain ViTs in bf16 on CUDA
    have kernels of their own, and are not compiled either."""

    @model_validator(mode="after")
    def _use_says_what_it_means(self, info: ValidationInfo) -> "TeachersConfig":
        if not is_to_be_trained(info):
            return self
        if self.use is not None and not self.use:
            raise ValueError("use names no teacher: name at least one, or leave it out (null) to use all")
        if twice := [name for name in self.models if (self.use or ()).count(name) > 1]:
            raise ValueError(
                f"use names '{twice[0]}' twice: keep one; teachers.models.{twice[0]}.weight=2 counts it twice"
            )
        return self

    @model_validator(mode="after")
    def _used_teachers_exist(self) -> "TeachersConfig":
        unknown = [name for name in self.use or () if name not in self.models]
        if unknown:
            raise ValueError(f"use names {unknown}, but the teachers are {list(self.models)}")
        return self

    def used(self) -> dict[str, TeacherConfig]:
        """The teachers of this run, in order."""
        return {name: self.models[name] for name in (self.models if self.use is None else self.use)}

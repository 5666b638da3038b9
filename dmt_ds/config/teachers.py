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
    says otherwise)."""
    num_heads: Count | None = None
    """Heads; they cannot be read off a weights file (MoCo v3's ViT-S has 12, timm's 6). Of transformers'
    `model.safetensors` they are in the config.json beside it, which is read where it fits."""
    checkpoint_key: str | None = None
    """Which part of a full checkpoint: `teacher`, `student`, `base_encoder`, `momentum_encoder`; null takes the
    layout's usual one."""
    mean: Triple | None = None
    """Its own normalisation; null takes what the source says, else ImageNet's."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Its own normalisation; null takes what the source says, else ImageNet's."""
    licence: str | None = None
    """SPDX id of the weights, kept in the run's record; null takes what is known of the source."""
    weight: NonNegative = 1.0
    """Factor of its tokens in the fused sum; with fusion `concat`, of its losses."""
    class_token: bool = True
    """Whether its class token is part of the fused class token."""


class TeachersConfig(Section):
    """The teachers, and how their weights lie on the devices."""

    models: dict[str, TeacherConfig] = Field(default={})
    """Name -> teacher; the order is the order in which they run."""
    use: tuple[str, ...] | None = None
    """Names of the teachers to use; null uses all."""
    sharding: Literal["zero3", "replicate", "auto"] = "zero3"
    """`zero3` cuts every teacher over the ranks; `replicate` keeps whole copies; `auto` cuts them where copies take
    much of a device's memory and gathering hides behind arithmetic, and says why in the log."""
    shard_over: Literal["node", "world"] = "node"
    """The ranks that share one cut copy: those of a node (weights don't cross the network each step), or all."""
    deepspeed: str = "teacher_zero3_inference"
    """DeepSpeed JSON of the teachers: a name in ds_configs/ or a path."""
    compile: bool = False
    """torch.compile the teachers, whole copies in one piece and cut ones block by block; without effect where it can't
    run, as `train.compile`, and for task tinymim, which reads inside their last block."""

    @model_validator(mode="after")
    def _use_says_what_it_means(self, info: ValidationInfo) -> "TeachersConfig":
        if not is_to_be_trained(info):
            return self
        if self.use is not None and not self.use:
            raise ValueError("use names no teacher: name some, or leave it out (null), which uses all")
        if twice := [name for name in self.models if (self.use or ()).count(name) > 1]:
            raise ValueError(
                f"use names '{twice[0]}' twice: keep one; teachers.models.{twice[0]}.weight=2 counts it so"
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

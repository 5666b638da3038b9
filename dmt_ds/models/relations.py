"""What TinyMIM reads of a ViT: queries, keys and values of its last block; knows no loss and no engine."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dmt_ds.config.schema import StudentConfig
from dmt_ds.errors import ConfigError, WeightsError
from dmt_ds.models.drop_path import drop_path_seeds
from dmt_ds.models.encoders import FrozenEncoder
from dmt_ds.models.plain_vit import has_plain_attention
from dmt_ds.models.student import in_weights_type
from dmt_ds.models.vit import class_and_patches, tokens_of


def last_block(vit: nn.Module) -> Any:
    """The block nearest to the output."""
    return vit.blocks[-1]  # type: ignore[index]


def last_qkv(vit: nn.Module, images: Tensor) -> Tensor:
    """Queries, keys and values of the last block, class token first, without distillation or register tokens.

    They are taken where the block makes them, in the ViT's own forward: the weights of a teacher that is cut over ranks
    are whole only there.

    Args:
        vit: its last block has plain attention.
        images: [B, 3, H, W], normalised, in the parameters' dtype.

    Returns:
        [B, 3, heads, 1+N, width / heads].
    """
    made: list[Tensor] = []
    attention: Any = last_block(vit).attn
    hook = attention.qkv.register_forward_hook(lambda module, inputs, output: made.append(output))
    try:
        tokens_of(vit, images)
    finally:
        hook.remove()
    qkv = class_and_patches(vit, made[0])  # [B, 1+N, 3 D]
    return qkv.reshape(*qkv.shape[:2], 3, attention.num_heads, attention.head_dim).permute(0, 2, 3, 1, 4)


class RelationEncoder(FrozenEncoder):
    """A frozen teacher that gives `last_qkv` instead of tokens.

    Args:
        model: given up to this one: what follows its last queries, keys and values is dropped.
    """

    def __init__(self, model: FrozenEncoder) -> None:
        super().__init__(model.vit, model.record)
        self.vit.norm = nn.Identity()
        block = last_block(self.vit)
        block.attn.proj = block.norm2 = block.mlp = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> [B, 3, heads, 1+N, width / heads]."""
        return last_qkv(self.vit, self.normalised(images))


class RelationStudent(nn.Module):
    """A ViT that is trained through its last block's queries, keys and values.

    What follows them (the rest of the last block, the final LayerNorm) learns nothing: it is frozen, so that weight
    decay does not move it either, and stays in the exported encoder as it started.

    Args:
        vit: the encoder; all of it is kept after training.

    Raises:
        ConfigError: its attention is not plain.
    """

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        block = last_block(vit)
        if not has_plain_attention(block):
            raise ConfigError("student.arch: TinyMIM needs plain attention in the last block; take vit_tiny, vit_small")
        self.vit = vit
        norm: Any = vit.norm
        norm.requires_grad_(False)
        block.requires_grad_(False)
        block.norm1.requires_grad_(True)
        block.attn.qkv.requires_grad_(True)

    def forward(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Normalised [B, 3, H, W] and seeds [B] int64, for drop path -> [B, 3, heads, 1+N, width / heads]."""
        with drop_path_seeds(self.vit, seeds):
            return last_qkv(self.vit, in_weights_type(self.vit, images))


def with_heads_of(section: StudentConfig, teachers: Mapping[str, FrozenEncoder]) -> StudentConfig:
    """The student whose last block has the teachers' heads: relations are compared head by head.

    Raises:
        WeightsError: a teacher has no plain attention.
        ConfigError: the heads of two teachers, or of the student's section and a teacher, differ.
    """
    asked = section.last_block_num_heads
    for name, teacher in teachers.items():
        _check_plain_attention(name, teacher)
        heads = teacher.record.shape.last_block_num_heads
        first, reference = next((name, other.record.shape.last_block_num_heads) for name, other in teachers.items())
        if heads != reference:
            raise ConfigError(
                f"teachers '{first}' and '{name}' have {reference} and {heads} heads in the last block, and tinymim "
                "compares head by head: use teachers of equally many heads (teachers.use=[...])"
            )
        if asked not in (None, heads):
            raise ConfigError(
                f"student.last_block_num_heads {asked}: teacher '{name}' has {heads} heads in its last block, and "
                "tinymim compares head by head; leave the setting out"
            )
    return section.model_copy(update={"last_block_num_heads": heads})


def _check_plain_attention(name: str, teacher: FrozenEncoder) -> None:
    if not has_plain_attention(last_block(teacher.vit)):
        raise WeightsError(
            f"teacher '{name}': {teacher.record.source}: its last block's attention has norms, positions or biases of "
            "its own, which tinymim can't compare; leave it out (teachers.use=[...])"
        )

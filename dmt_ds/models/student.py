"""The student: a ViT and the adapters to its teachers' widths; knows no teacher, no loss and no engine."""

from collections.abc import Mapping

from torch import Tensor, nn

from dmt_ds.errors import ConfigError
from dmt_ds.models.drop_path import drop_path_seeds
from dmt_ds.models.vit import shape_of, tokens_of


class Student(nn.Module):
    """A ViT whose tokens are mapped to the width of each target.

    Args:
        vit: the encoder; all that is kept after training.
        widths: target name -> its width D: `{"fused": 768}`, or one a teacher where teachers are kept apart.
        adapter: `auto`, `linear`, `ln_linear`, `mlp` or `identity`, as `StudentConfig.adapter` has it.

    Raises:
        ConfigError: `identity` between different widths.
    """

    def __init__(self, vit: nn.Module, widths: Mapping[str, int], adapter: str = "auto") -> None:
        super().__init__()
        self.vit = vit
        own_width = shape_of(vit).embed_dim
        self.adapters = nn.ModuleDict(
            {name: build_adapter(adapter, own_width, width) for name, width in widths.items()}
        )

    def forward(self, images: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """Student tokens for each target.

        Args:
            images: [B, 3, H, W] float, normalised.
            seeds: [B] int64, one an image: drop path is drawn from them.

        Returns:
            Target name -> student_tokens [B, 1+N, D], class token first, after the adapter.

        Raises:
            TypeError: the images are bytes.
        """
        with drop_path_seeds(self.vit, seeds):
            tokens = tokens_of(self.vit, in_weights_type(self.vit, images))
        return {name: adapter(tokens) for name, adapter in self.adapters.items()}


def in_weights_type(vit: nn.Module, images: Tensor) -> Tensor:
    """Normalised images [B, 3, H, W] in the type of the ViT's weights.

    Raises:
        TypeError: they are bytes, which nobody has normalised.
    """
    if not images.is_floating_point():
        raise TypeError(
            f"images are {images.dtype}: a student takes normalised floats, such as `Augment` makes of bytes"
        )
    return images.to(next(vit.parameters()).dtype)


def build_adapter(kind: str, in_width: int, out_width: int) -> nn.Module:
    """What maps student tokens [.., D'] to the teacher's width [.., D]; dropped when the student is exported."""
    if kind == "identity" and in_width != out_width:
        raise ConfigError(
            f"student.adapter is identity, but the student is {in_width} wide and its teacher {out_width}: "
            "set student.adapter=linear"
        )
    if kind == "identity" or (kind == "auto" and in_width == out_width):
        return nn.Identity()
    if kind in ("auto", "linear"):
        return xavier_linear(in_width, out_width)
    if kind == "ln_linear":
        return nn.Sequential(nn.LayerNorm(in_width, eps=1e-6), xavier_linear(in_width, out_width))
    assert kind == "mlp", kind
    return nn.Sequential(xavier_linear(in_width, out_width), nn.GELU(), xavier_linear(out_width, out_width))


def xavier_linear(in_width: int, out_width: int) -> nn.Linear:
    """Initialised as the ViT's own linear maps are."""
    linear = nn.Linear(in_width, out_width)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear

"""A ViT with a linear head, trained whole or by its head alone; knows no data, no loss and no engine."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmt_ds.downstream.shared_batch_norm import SharedBatchNorm
from dmt_ds.engine.deepspeed.masters import state_of
from dmt_ds.models.drop_path import drop_path_seeds
from dmt_ds.models.vit import tokens_of


class Classifier(nn.Module):
    """A ViT and a linear head.

    The norm is the ViT's own final LayerNorm and no other, so that the encoder that is kept has it. `class` takes the
    class token after it, as DeiT does. `patch_mean` takes the mean of the patch tokens before it, and norms that mean,
    as MAE, BEiT and TinyMIM do when they fine-tune (timm's `fc_norm`); as it then stands in another place than where
    given weights had it, it starts afresh. In a frozen encoder it stays where it is, and the normed patch tokens are
    averaged.

    Args:
        vit: the encoder; all that is kept as the backbone.
        pooling: `class` or `patch_mean`, as `ClassifyConfig.pooling` has it.
        frozen: only the head is trained, behind a batch norm without gain and bias; the ViT stays in evaluation.
        head_std: of the head's first weights.
    """

    def __init__(
        self,
        vit: nn.Module,
        num_classes: int,
        pooling: Literal["class", "patch_mean"],
        frozen: bool = False,
        head_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.pooling = pooling
        self.frozen = frozen
        parts: Any = vit
        if frozen:
            vit.requires_grad_(False)
        elif pooling == "patch_mean":
            parts.norm.reset_parameters()
        self.feature_norm = SharedBatchNorm(parts.embed_dim) if frozen else nn.Identity()
        self.head = nn.Linear(parts.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)

    @property
    def norms_the_mean(self) -> bool:
        """Whether the final norm comes after the mean over patches: timm's `fc_norm`."""
        return self.pooling == "patch_mean" and not self.frozen

    def train(self, mode: bool = True) -> "Classifier":
        """A frozen encoder is always in evaluation: no drop path."""
        super().train(mode)
        if self.frozen:
            self.vit.eval()
        return self

    def forward(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Scores of the classes.

        Args:
            images: [B, 3, H, W] float, normalised.
            seeds: [B] int64, one an image: drop path is drawn from them in training.

        Returns:
            [B, C], before the softmax.
        """
        kind = self.head.weight.dtype
        with drop_path_seeds(self.vit, seeds), torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pooled = self._pooled(images.to(kind))
        logits: Tensor = self.head(self.feature_norm(pooled).to(kind))
        return logits

    def timm_state(self, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole classifier as timm names it: `norm` is `fc_norm` where the mean of the patch tokens is normed.

        The batch norm of a frozen encoder becomes part of the head, which gives the same scores.

        Args:
            masters: float32 weights of what is trained, by this module's names; they win over its own.
        """
        own = state_of(self, masters)
        if isinstance(self.feature_norm, SharedBatchNorm):
            norm = self.feature_norm
            mean, variance = own.pop("feature_norm.running_mean"), own.pop("feature_norm.running_var")
            own["head.weight"] = own["head.weight"] * (variance + norm.eps).rsqrt()
            own["head.bias"] = own["head.bias"] - own["head.weight"] @ mean
        return {self._timm_name(key): value for key, value in own.items()}

    def load_timm_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `timm_state`, strict; the batch norm of a frozen encoder stays part of the head, for good."""
        self.feature_norm = nn.Identity()
        self.load_state_dict({key: state[self._timm_name(key)] for key in self.state_dict()}, strict=True)

    def _timm_name(self, key: str) -> str:
        name = key.removeprefix("vit.")
        return f"fc_{name}" if self.norms_the_mean and name.startswith("norm.") else name

    def _pooled(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        if self.pooling == "class":
            return tokens_of(self.vit, images)[:, 0]
        if not self.norms_the_mean:
            return tokens_of(self.vit, images)[:, 1:].mean(dim=1)
        vit: Any = self.vit
        (patches,) = vit.forward_intermediates(
            images, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
        )  # [B, N, D]: the last block's, without class token
        pooled: Tensor = vit.norm(patches.mean(dim=1))
        return pooled

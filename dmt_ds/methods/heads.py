"""The MLPs that methods put on an encoder's tokens and drop afterwards; knows no loss.

Batch norm here keeps no running statistics: heads are used in training alone, and what is not kept need not be
restored. On CUDA the statistics are those of all ranks (`share_batch_norm`); on the CPU each rank has its own.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_ds.engine import dist


def batch_norm_mlp(widths: Sequence[int]) -> nn.Sequential:
    """MoCo v3's projector and predictor: Linear without bias, BN, ReLU; the last BN has no scale, shift or ReLU."""
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for i, (width_in, width_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(width_in, width_out, bias=False))
        layers.append(nn.BatchNorm1d(width_out, affine=i != last, track_running_stats=False))
        if i != last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def share_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Let the batch norms inside `module` take the statistics of all ranks; only CUDA can. Parameters stay the same."""
    if device.type == "cuda" and dist.world_size() > 1:
        for name, child in module.named_children():
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]


class PrototypeHead(nn.Module):
    """iBOT's and DINO's head: three-layer MLP, unit length, cosine to K prototypes; class and patch tokens share it."""

    def __init__(self, width: int, hidden_dim: int, bottleneck_dim: int, num_prototypes: int, batch_norm: bool) -> None:
        super().__init__()
        widths = (width, hidden_dim, hidden_dim)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers.append(nn.Linear(width_in, width_out))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width_out, track_running_stats=False))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        # Only the direction of a prototype counts (weight norm with its gain fixed at 1), so its scale is free.
        self.prototypes = nn.Parameter(F.normalize(torch.randn(num_prototypes, bottleneck_dim), dim=1))

    def forward(self, rows: Tensor) -> Tensor:
        """Tokens -> logits: [R, D] -> [R, K] float32.

        Lengths and cosines are float32 whatever the weights and autocast are: over a temperature of 0.04, the rounding
        of a cosine to bf16 would move a logit by 0.05.
        """
        bottleneck = self.mlp(rows)  # [R, C]
        with torch.autocast(rows.device.type, enabled=False):
            return F.linear(F.normalize(bottleneck.float(), dim=1), F.normalize(self.prototypes.float(), dim=1))

"""Fixed positions of a ViT's patches; knows no ViT."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from dmt_ds.config.section import multiples_near
from dmt_ds.errors import ConfigError

_ROUNDING = 1e-2  # of a table in half precision


def check_width(embed_dim: int, heads: Iterable[int]) -> None:
    """Whether a student of this width can have fixed positions.

    Args:
        embed_dim: width D.
        heads: of its blocks; what is advised fits them too.

    Raises:
        ConfigError: it can't.
    """
    if embed_dim % 4:
        raise ConfigError(
            f"student.embed_dim {embed_dim} is not a multiple of 4, as student.positions=sincos needs: "
            f"take {multiples_near(embed_dim, math.lcm(4, *heads))}, or student.positions=learned"
        )


def sincos_positions(embed_dim: int, grid_size: int) -> Tensor:
    """MAE's fixed 2-D table (its `get_2d_sincos_pos_embed`): [N, D] float32, row by row.

    The first half of the channels holds the column, the second the row; each half is sines, then cosines, of the
    coordinate times 10000^(-k / (D/4)).
    """
    quarter = embed_dim // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)  # [D/4]
    coordinates = torch.arange(grid_size, dtype=torch.float64)
    rows, columns = torch.meshgrid(coordinates, coordinates, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]  # each [N, D/4]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def is_moco_v3_table(positions: Tensor) -> bool:
    """Whether [1, 1+N, D] is MoCo v3's fixed table: MAE's with rows and columns exchanged; 0 for the class token."""
    if positions.ndim != 3 or positions.shape[-1] % 4:
        return False
    table = positions[0].float()
    side = math.isqrt(max(len(table) - 1, 0))
    if side < 2 or side**2 != len(table) - 1:
        return False
    exchanged = sincos_positions(table.shape[1], side).view(side, side, -1).transpose(0, 1).flatten(0, 1)
    whole = torch.cat([torch.zeros(1, table.shape[1]), exchanged])
    return torch.allclose(table, whole.to(table.device), rtol=0, atol=_ROUNDING)

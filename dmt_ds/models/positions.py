"""Fixed positions of a ViT's patches; knows no ViT."""

import torch
from torch import Tensor


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

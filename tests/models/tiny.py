"""Small ViTs and checkpoints that the tests of models share."""

import torch
from torch import Tensor, nn

from dmt_ds.config.schema import StudentConfig
from dmt_ds.models.vit import build_vit, tokens_of

IMAGE_SIZE, PATCH_SIZE, WIDTH, HEADS = 32, 8, 32, 2
NUM_TOKENS = 1 + (IMAGE_SIZE // PATCH_SIZE) ** 2


def section(**changes: object) -> StudentConfig:
    sizes = {"patch_size": PATCH_SIZE, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "drop_path": 0.0}
    return StudentConfig.model_validate(sizes | changes)


def vit(seed: int = 0, **changes: object) -> nn.Module:
    """In evaluation, with no parameter at 0 or 1, so that a swapped one shows."""
    torch.manual_seed(seed)
    model = build_vit(section(**changes), IMAGE_SIZE).eval()
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def pictures(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )


def normalised(count: int = 2, seed: int = 2) -> Tensor:
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def tokens(model: nn.Module, images: Tensor | None = None) -> Tensor:
    return tokens_of(model, normalised() if images is None else images)

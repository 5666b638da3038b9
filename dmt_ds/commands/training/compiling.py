"""Whether what a recipe wants compiled can be compiled here; knows no model."""

import logging

import torch

from dmt_ds.engine import dist
from dmt_ds.triton_support import obstacle_to_triton

logger = logging.getLogger(__name__)

_GRAPHS = 64
"""Of one function, before torch leaves the rest uncompiled."""


def compiles(wanted: bool, what: str, device: torch.device, *, read_inside: bool = False) -> bool:
    """Whether to hand `what` (`teachers`) to torch.compile, which needs all that Triton needs; the log says why not.

    All ranks call and decide alike: gradients of a compiled student are ready in another order (`GradientOrder`).

    Args:
        read_inside: its last block is looked into (task tinymim), which a compiled one does not allow.
    """
    if not wanted:
        return False
    obstacle = "task tinymim reads inside the last block" if read_inside else _obstacle_on_some_rank(device)
    if obstacle is not None:
        logger.info("%s: not compiled: %s", what, obstacle)
        return False
    _allow_many_graphs()
    return True


def _obstacle_on_some_rank(device: torch.device) -> str | None:
    """What keeps a rank from compiling, named if it is not the same on all; nodes may have unlike software."""
    obstacles = dist.gather_objects(obstacle_to_triton(device))
    if len(set(obstacles)) == 1:
        return obstacles[0]
    return next(f"rank {rank}: {obstacle}" for rank, obstacle in enumerate(obstacles) if obstacle is not None)


def _allow_many_graphs() -> None:
    """All students and whole teachers count together, and each again where it is judged: torch stops at 8."""
    import torch._dynamo  # a second, paid only by who compiles

    torch._dynamo.config.recompile_limit = max(_GRAPHS, torch._dynamo.config.recompile_limit)

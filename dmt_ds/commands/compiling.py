"""Whether what a recipe wants compiled can be compiled here; knows no model."""

import logging

import torch

from dmt_ds.triton_support import obstacle_to_triton

logger = logging.getLogger(__name__)


def compiles(wanted: bool, what: str, device: torch.device, *, read_inside: bool = False) -> bool:
    """Whether to hand `what` (`teachers`) to torch.compile, which needs all that Triton needs; the log says why not.

    Args:
        read_inside: its last block is looked into (task tinymim), which a compiled one does not allow.
    """
    if not wanted:
        return False
    obstacle = "task tinymim reads inside the last block" if read_inside else obstacle_to_triton(device)
    if obstacle is not None:
        logger.info("%s: not compiled: %s", what, obstacle)
    return obstacle is None

"""What a checkpoint's pickles may name; knows no engine.

DeepSpeed unpickles its files without limits, so that whoever can write a run's folder could have the next start run
their program. What a file would import is therefore read off before it is loaded, without running any of it.
"""

from pathlib import Path

import torch

from dmt_ds.engine.checkpoints.manifest import unread
from dmt_ds.errors import CheckpointError
from dmt_ds.storage import is_away
from dmt_ds.wording import first_line

_ALLOWED = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)
"""What DeepSpeed keeps beside tensors and plain values."""


def refuse_programs(folder: Path) -> None:
    """Look at all of a checkpoint's PyTorch files.

    Raises:
        CheckpointError: one would import what no checkpoint needs, or its pickle can't be followed.
        StorageError: one can't be read.
    """
    for path in sorted(folder.rglob("*.pt")):
        try:
            named = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _ALLOWED
        except Exception as error:  # what torch raises for a file that it can't follow has no common class
            if is_away(error):
                raise unread(path, error) from error
            reason = first_line(error)
            raise CheckpointError(
                f"{path}: refused, this run can't have written such a PyTorch file ({reason}); move this "
                "checkpoint away to resume from an older one"
            ) from error
        if named:
            raise CheckpointError(
                f"{path}: refused, loading it would run {', '.join(sorted(named))}, which no checkpoint of this "
                "program needs: someone else has written it; move this checkpoint away to resume from an older one"
            )

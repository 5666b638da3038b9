"""A running mean of float32 masters, not of the weights that an engine rounds from them; knows no task."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from dmt_ds.engine.deepspeed.masters import parts_of, whole_of
from dmt_ds.methods.momentum import MomentumNetwork

M = TypeVar("M", bound=nn.Module)


class MasterMean(MomentumNetwork[M]):
    """average <- m * average + (1 - m) * masters, each rank of the part that its optimizer has.

    Attributes:
        network: the whole average, as of the last `gather`.
    """

    def __init__(self, trained: M) -> None:
        super().__init__(trained)
        self._parts: dict[str, Tensor] | None = None
        """Name -> [n] float32, of this rank; None where no update has come since `network` was set."""

    @torch.no_grad()
    def update(self, trained: nn.Module, momentum: float) -> None:
        """One step towards the masters of `trained`."""
        masters = parts_of(trained)
        if self._parts is None:
            whole = dict(self.network.named_parameters())
            self._parts = {name: part.cut_from(whole[name]) for name, part in masters.items()}
        torch._foreach_lerp_(list(self._parts.values()), [part.values for part in masters.values()], 1 - momentum)

    @torch.no_grad()
    def gather(self, trained: nn.Module) -> None:
        """Bring `network` to date before someone looks at it; all ranks call."""
        if self._parts is None:
            return
        network = dict(self.network.named_parameters())
        for name, average in whole_of(trained, self._parts).items():
            network[name].copy_(average)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of `network`."""
        self.network.load_state_dict(dict(state))
        self._parts = None

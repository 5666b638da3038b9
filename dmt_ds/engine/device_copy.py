"""Batches on their way to the device; knows no training loop."""

import torch

from dmt_ds.data.batch import Batch


class DeviceCopy:
    """Copies batches to the device; on CUDA while it still computes what came before, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device, ready for what the present stream does from now on; the host does not wait."""
        if self._stream is None or batch.target is not None:  # a target moves its own tensors
            return batch.to(self._device)
        present = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            copy = batch.to(self._device)
        present.wait_stream(self._stream)
        for part in (*copy.crops, copy.seeds, copy.indices, copy.labels):
            part.record_stream(present)  # else its memory could be given to the next copy before it has been read
        return copy

"""Many small JSON values in memory that loader processes share; knows no data set."""

import json
from collections.abc import Iterable
from typing import Any

import torch


class PackedRecords:
    """A JSON value a row in two tensors: loader processes share them, where lists of a million polygons are copied."""

    def __init__(self, records: Iterable[object]) -> None:
        encoded = [json.dumps(record, separators=(",", ":")).encode() for record in records]
        self._text = torch.frombuffer(bytearray(b"".join(encoded) or b" "), dtype=torch.uint8)
        self._ends = torch.tensor([0, *(len(text) for text in encoded)]).cumsum(0)

    def __getitem__(self, index: int) -> Any:
        """The value of a row, read anew each time."""
        start, end = self._ends[index], self._ends[index + 1]
        return json.loads(self._text[start:end].numpy().tobytes())

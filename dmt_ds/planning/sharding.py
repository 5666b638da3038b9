"""`teachers.sharding: auto`: cut teachers or whole copies, by memory and by what gathering costs; plain formulas."""

from dataclasses import dataclass
from typing import Literal

SMALL_SHARE = 0.1
"""Whole copies below this share of a device's memory stay whole: memory is no reason to shard them."""
LARGE_SHARE = 0.5
"""Above this one they are cut at any price: the student needs the rest."""


@dataclass(frozen=True)
class ShardingCost:
    """What is weighed; times are of one micro-batch.

    Attributes:
        num_ranks: that would share one cut copy.
        copy_bytes: of whole copies of all teachers, on each rank.
        memory_bytes: of a rank's device.
        gather_seconds: to gather all teachers once.
        forward_seconds: of the teachers' arithmetic, behind which gathering may hide.
        rates: whose the times are, for the reason.
    """

    num_ranks: int
    copy_bytes: float
    memory_bytes: float
    gather_seconds: float
    forward_seconds: float
    rates: Literal["measured", "planned"] = "measured"

    def choose(self) -> tuple[Literal["zero3", "replicate"], str]:
        """The choice, and its reason in one line."""
        share = self.copy_bytes / self.memory_bytes
        size = f"whole copies take {self.copy_bytes / 2**30:.2f} GiB of {self.memory_bytes / 2**30:.0f} GiB"
        size += f" ({100 * share:.1f} %)"
        if self.num_ranks == 1:
            return "replicate", f"{size}; there is only one rank to shard over"
        gather, forward = (f"{1000 * seconds:.3g} ms" for seconds in (self.gather_seconds, self.forward_seconds))
        cost = (
            f"{size}; sharded over {self.num_ranks} ranks, each micro-batch would gather for {gather} and compute for "
            f"{forward} (modelled from {self.rates} rates)"
        )
        if share <= SMALL_SHARE:
            return "replicate", f"{cost}; up to {100 * SMALL_SHARE:.0f} % memory is no reason to shard"
        if share > LARGE_SHARE:
            return "zero3", f"{cost}; above {100 * LARGE_SHARE:.0f} % the student needs the memory"
        if self.gather_seconds <= self.forward_seconds:
            return "zero3", f"{cost}; gathering hides behind the arithmetic"
        return "replicate", f"{cost}; gathering does not hide behind the arithmetic"

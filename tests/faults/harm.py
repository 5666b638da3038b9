"""What a rank does to itself before it starts; named in `processes.launched(harm=...)`, each called with the rank."""

import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

_TAKEN_AT_ONCE = 8 * 2**20  # what is smaller stays for messages


def limit_memory(rank: int, of_rank: int, mark: str, more_mib: int) -> None:
    """Once the file `mark` is there, the rank gets only so much more memory than it has.

    What it has may be enough for ever, as freed memory stays with it on a CPU: all of that is taken away, too.
    """
    if rank != of_rank:
        return

    def wait() -> None:
        while not Path(mark).exists():
            time.sleep(0.05)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        taken = []
        while True:
            try:
                taken.append(bytearray(_TAKEN_AT_ONCE))
            except MemoryError:
                time.sleep(0.01)

    threading.Thread(target=wait, daemon=True).start()


def disturb_loss(rank: int, of_rank: int, at_step: int, factor: float) -> None:
    """In one step the rank's loss is so many times as large; NaN and infinity are numbers too."""
    from dmt_ds.methods.dmt import DmtTask

    plain = DmtTask.losses

    def losses(task: Any, model: Any, batch: Any, progress: Any, diagnose: bool) -> Any:
        found = plain(task, model, batch, progress, diagnose)
        return found._replace(loss=found.loss * factor) if progress.step + 1 == at_step else found

    if rank == of_rank:
        DmtTask.losses = losses  # type: ignore[method-assign]


def meet_at(rank: int, port: int) -> None:
    """Rank 0 listens there, and the others look for it there, whoever has the port."""
    os.environ["MASTER_PORT"] = str(port)


def hurry_collectives(rank: int, slack_seconds: float) -> None:
    """They wait so much longer than the watchdog, or less where it is below 0."""
    from dmt_ds.commands.training import pretrain

    pretrain.GROUP_SLACK_SECONDS = slack_seconds


def lose_the_run_after_the_last_step(rank: int, run: str) -> None:
    """Another attempt claims the folder between training and publishing."""
    from dmt_ds.engine.checkpoints.fence import Fence
    from dmt_ds.engine.trainer import Trainer

    plain = Trainer.fit

    def fit(trainer: Any) -> Any:
        outcome = plain(trainer)
        if rank == 0:
            Fence.claim(Path(run))
        return outcome

    Trainer.fit = fit  # type: ignore[method-assign]


def note_reading(rank: int, below: str, notes: str) -> None:
    """Each folder below a place that the rank lists, and each file there that it opens, is a line: rank, what, path."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.scandir", "os.listdir", "open") and (path := str(arguments[0])).startswith(below):
            with Path(notes).open("a") as file:
                file.write(f"{rank} {event} {path}\n")

    sys.addaudithook(note)

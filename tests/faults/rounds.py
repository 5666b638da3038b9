"""One run that is started, harmed and started again; what its folder says in between. Used by tests and by the soak."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests import processes, tiny_run
from tests.processes import Launched

WORLD = 2
ENDS_BY_ITSELF_SECONDS = 40.0
HANG_SECONDS = 8.0


@dataclass
class Round:
    """What was done, when, and what became of it."""

    fault: str
    moment: str
    """`start` before the first step of this attempt, then `step`, `save` or `evaluation`."""
    codes: list[int]
    saved_before: int
    saved_after: int
    seconds: float
    """From the harm until all ranks had ended."""
    ended_alone: bool
    """Whether nobody had to end the ranks that were left: while they still look for each other, a launcher does."""

    @property
    def went_back(self) -> bool:
        """Whether a step that was complete on disk is not any more."""
        return self.saved_after < self.saved_before


@dataclass
class Lane:
    """A run and its attempts."""

    recipe: Path
    run: Path
    chance: random.Random
    overrides: tuple[str, ...] = ()
    rounds: list[Round] = field(default_factory=list)

    def arguments(self, *more: str) -> list[str]:
        return tiny_run.pretrain(self.recipe, f"output_dir={self.run}", *self.overrides, *more)

    def points(self) -> list[dict[str, Any]]:
        """Readable lines of the run's points, in the order in which they were written."""
        found = []
        path = self.run / "metrics.jsonl"
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # cut by a kill
        return found

    def saved_step(self) -> int:
        """Newest checkpoint that has its name, whole or not."""
        names = [path.name for path in (self.run / "checkpoints").glob("step*") if "universal" not in path.name]
        return int(max(names, default="step0")[4:])

    def moment(self, lines_before: int, since: float) -> str:
        """What the ranks are at; an attempt before `since` may have left an unfinished save."""
        unfinished = (self.run / "checkpoints").glob(".tmp-step*")
        if any(path.exists() and path.stat().st_mtime > since for path in unfinished):
            return "save"
        points = self.points()[lines_before:]
        if not points:
            return "start"
        evaluates = any(name.startswith("eval/") for point in points for name in point["metrics"])
        return "evaluation" if evaluates and "train/loss" in points[-1]["metrics"] else "step"

    def round(self, fault: str, harm: "Harm", log: Path) -> Round:
        """Start, wait for a random moment, do it, wait until all ranks have ended by themselves or by the harm."""
        saved, lines, since = self.saved_step(), len(self.points()), time.time()
        with processes.launched(self.arguments(), WORLD, log, cwd=self.run.parent) as ranks:
            self._wait_for_moment(lines, ranks)
            moment, began = self.moment(lines, since), time.monotonic()
            harm(self, ranks)
            alone = ranks.end_as_a_launcher_does(ENDS_BY_ITSELF_SECONDS)
            codes, seconds = ranks.wait(), time.monotonic() - began
        done = Round(fault, moment, codes, saved, self.saved_step(), seconds, alone)
        self.rounds.append(done)
        return done

    def _wait_for_moment(self, lines: int, ranks: Launched) -> None:
        if self.chance.random() < 0.25:
            time.sleep(self.chance.uniform(0, 3))
            return
        deadline = time.monotonic() + 120
        while len(self.points()) <= lines and None in ranks.codes() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(self.chance.uniform(0, 4))

    def losses(self) -> dict[int, set[float]]:
        """Step -> all losses that were written for it."""
        found: dict[int, set[float]] = {}
        for point in self.points():
            if "train/loss" in point["metrics"]:
                found.setdefault(point["step"], set()).add(point["metrics"]["train/loss"])
        return found

    def temporary_files(self) -> list[str]:
        """What no finished attempt may leave behind."""
        marks = (".tmp", ".part", ".partial")
        return sorted(
            str(path.relative_to(self.run))
            for path in self.run.rglob("*")
            if any(mark in path.name for mark in marks) or path.name.startswith(".attempt")
        )


Harm = Callable[[Lane, Launched], None]


def send(number: signal.Signals, *, to_all: bool) -> Harm:
    """A signal to one rank, drawn by chance, or to all."""

    def harm(lane: Lane, ranks: Launched) -> None:
        victim = lane.chance.randrange(WORLD)
        for pid in ranks.pids if to_all else [ranks.pids[victim]]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:  # it has ended meanwhile
                continue

    return harm


KILLS: dict[str, Harm] = {
    "SIGKILL of one rank": send(signal.SIGKILL, to_all=False),
    "SIGKILL of all ranks": send(signal.SIGKILL, to_all=True),
}


def spoil(how: Callable[[Path], object]) -> Harm:
    """All ranks are killed; then a file of the newest checkpoint is changed, if there is an older one."""

    def harm(lane: Lane, ranks: Launched) -> None:
        KILLS["SIGKILL of all ranks"](lane, ranks)
        ranks.wait()
        checkpoints = sorted(
            path for path in (lane.run / "checkpoints").glob("step*") if (path / "manifest.json").exists()
        )
        if len(checkpoints) > 1:
            how(lane.chance.choice(sorted(path for path in checkpoints[-1].rglob("*") if path.is_file())))

    return harm


def turn_a_bit_over(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def summary(rounds: list[Round]) -> dict[str, Any]:
    """Counts of faults and of the moments in which they came."""
    faults: dict[str, int] = {}
    moments: dict[str, int] = {}
    for done in rounds:
        faults[done.fault] = faults.get(done.fault, 0) + 1
        moments[done.moment] = moments.get(done.moment, 0) + 1
    return {
        "rounds": len(rounds),
        "rounds with a rank killed": sum(-signal.SIGKILL in done.codes for done in rounds),
        "faults": faults,
        "moments": moments,
        "log": [asdict(done) for done in rounds],
    }

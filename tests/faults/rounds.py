"""One run that is started, harmed and started again; what its folder says in between. Used by tests and by the soak."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from dmt_ds.engine.checkpoints import manifest
from dmt_ds.engine.checkpoints.checkpoint import tag_of
from tests import processes, tiny_run
from tests.processes import Launched

WORLD = 2
ENDS_BY_ITSELF_SECONDS = 60.0
MEET_SECONDS = 15.0
"""Ranks that still look for each other do not learn of one that is gone: a launcher ends them."""
HANG_SECONDS = 20.0
"""Loader processes of a start on a busy machine take half of that."""
HELPERS_END_SECONDS = 20.0
"""A loader process looks once a second whether its trainer lives."""
KILLED, ONE_LINE, AGAIN = -signal.SIGKILL, 2, 75
PEER_FAILED = 1
"""Less than any code of the rank that failed: a launcher gives the highest."""


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
    took_effect: bool
    """Whether there was something to harm: a checkpoint to spoil, tables to lock."""
    broken_promises: list[str]

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
    evaluates_every_steps: int | None = None
    rounds: list[Round] = field(default_factory=list)
    spoilt_step: int = 0
    """Of the newest checkpoint, when it was last spoilt: as long as it lies there it may be skipped."""

    def arguments(self, *more: str) -> list[str]:
        return tiny_run.pretrain(self.recipe, f"output_dir={self.run}", *more)

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
        last, every = points[-1], self.evaluates_every_steps
        is_due = every is not None and "train/loss" in last["metrics"] and last["step"] % every == 0
        return "evaluation" if is_due else "step"

    def round(self, fault: str, harm: "Harm", log: Path, *overrides: str) -> Round:
        """Start, wait for a random moment, do it, wait until all ranks have ended by themselves or by the harm."""
        saved, lines, since = self.saved_step(), len(self.points()), time.time()
        spoilt = (self.run / "checkpoints" / tag_of(self.spoilt_step)).exists()
        with processes.launched(self.arguments(*overrides), WORLD, log, cwd=self.run.parent) as ranks:
            self._wait_for_moment(lines, ranks)
            moment, began, helpers = self.moment(lines, since), time.monotonic(), helpers_of(ranks.pids)
            took_effect = harm(self, ranks)
            alone = ranks.end_as_a_launcher_does(MEET_SECONDS if moment == "start" else ENDS_BY_ITSELF_SECONDS)
            codes, seconds = ranks.wait(), time.monotonic() - began
        done = Round(fault, moment, codes, saved, self.saved_step(), seconds, alone, took_effect, [])
        done.broken_promises += self._broken_promises(done, log.read_text(errors="replace"), spoilt)
        done.broken_promises += [f"outlived its rank: {name}" for name in still_alive(helpers)]
        self.rounds.append(done)
        return done

    def _broken_promises(self, done: Round, log: str, spoilt: bool) -> list[str]:
        """What must not be so after any round, and what not after one of this fault."""
        found = [f"exit code {code}: {last_words(log)}" for code in unpromised_codes(done)]
        # Python's own, of a loader process that was not whole yet when its trainer was killed, can't be helped.
        if "Traceback (most recent call last)" in log and done.moment != "start":
            found.append("a traceback in the log")
        if ": skipped: " in log and not spoilt:
            found.append("a checkpoint that nobody spoilt was skipped")
        if self.saved_step() > self.spoilt_step:
            newest = self.run / "checkpoints" / tag_of(self.saved_step())
            problem = manifest.incompleteness(newest) or manifest.damage(newest)
            found += [f"{newest.name}: {problem}"] * bool(problem)
        return found

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


Harm = Callable[[Lane, Launched], bool]
"""Does it, and says whether there was something to do it to; else it kills."""

PROMISED_CODES: dict[str, set[int]] = {
    "SIGKILL of one rank": {KILLED, PEER_FAILED, ONE_LINE, AGAIN},
    "SIGSTOP of one rank": {KILLED, PEER_FAILED, ONE_LINE, AGAIN},
    "SIGTERM": {0},
    "SIGUSR1 to one rank": {0},
    "SQLite store locked for 4 s": {0},
    "MLflow server killed": {KILLED, PEER_FAILED, ONE_LINE, AGAIN},
    "disk full": {PEER_FAILED, ONE_LINE, AGAIN},
    "folder read-only": {PEER_FAILED, ONE_LINE, AGAIN},
}
"""Fault -> how a rank may end; where nothing is said, by the kill that belongs to the harm."""


def unpromised_codes(done: Round) -> list[int]:
    """Before ranks listen, a signal ends one by itself, and the others end for it or are ended by who started them."""
    if set(done.codes) == {PEER_FAILED}:  # each one says that the other failed
        return done.codes
    if not done.took_effect or done.moment == "start":
        return []
    return [code for code in done.codes if code not in PROMISED_CODES.get(done.fault, {KILLED})]


def last_words(log: str) -> str:
    """Why the ranks ended, by themselves or for a watchdog; empty where they did not say."""
    reasons = [line for line in log.splitlines() if "no progress" in line or line.startswith("dmt-ds: error: ")]
    return reasons[0] if reasons else ""


def helpers_of(pids: list[int]) -> list[psutil.Process]:
    """All processes below these: loaders, and what starts them."""
    found = []
    for pid in pids:
        with suppress(psutil.Error):
            found += psutil.Process(pid).children(recursive=True)
    return found


def still_alive(helpers: list[psutil.Process]) -> list[str]:
    """Commands of those that do not end in time."""
    _, alive = psutil.wait_procs(helpers, timeout=HELPERS_END_SECONDS)
    return [" ".join(process.cmdline())[:100] for process in alive]


def send(number: signal.Signals, *, to_all: bool) -> Harm:
    """A signal to one rank, drawn by chance, or to all."""

    def harm(lane: Lane, ranks: Launched) -> bool:
        victim = lane.chance.randrange(WORLD)
        for pid in ranks.pids if to_all else [ranks.pids[victim]]:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, number)
        return True

    return harm


KILLS: dict[str, Harm] = {
    "SIGKILL of one rank": send(signal.SIGKILL, to_all=False),
    "SIGKILL of all ranks": send(signal.SIGKILL, to_all=True),
}


def end_for_it(ranks: Launched) -> None:
    """All ranks have ended by themselves, or are killed after a while, which was not promised."""
    try:
        ranks.wait(ENDS_BY_ITSELF_SECONDS)
    except AssertionError:
        ranks.kill()


def kill_instead(lane: Lane, ranks: Launched) -> bool:
    """Where there is nothing to harm yet."""
    KILLS["SIGKILL of one rank"](lane, ranks)
    return False


def spoil(how: Callable[[Path], object]) -> Harm:
    """All ranks are killed; then a file of the newest checkpoint is changed, if there is an older one."""

    def harm(lane: Lane, ranks: Launched) -> bool:
        KILLS["SIGKILL of all ranks"](lane, ranks)
        ranks.wait()
        checkpoints = sorted(
            path for path in (lane.run / "checkpoints").glob("step*") if (path / "manifest.json").exists()
        )
        if len(checkpoints) < 2:
            return False
        files = (path for path in checkpoints[-1].rglob("*") if path.is_file() and path.stat().st_size)
        how(lane.chance.choice(sorted(files)))
        lane.spoilt_step = int(checkpoints[-1].name[4:])
        return True

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
    return {
        "rounds": len(rounds),
        "rounds with a rank killed": sum(KILLED in done.codes for done in rounds),
        "faults": Counter(done.fault for done in rounds if done.took_effect),
        "moments": Counter(done.moment for done in rounds),
        "broken promises": [f"{done.fault} at {done.moment}: {it}" for done in rounds for it in done.broken_promises],
        "log": [asdict(done) for done in rounds],
    }

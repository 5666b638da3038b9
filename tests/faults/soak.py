"""Trains for so many minutes while random things go wrong, starts again each time, and shows what was lost.

    python -m tests.faults.soak --minutes 60 --out soak.json

Two lanes take turns: a distillation whose MLflow run is on a server that dies and comes back, and a classifier that is
judged as it trains, with an SQLite store that another writer locks. After each round exit codes, log, newest checkpoint
and the processes below the ranks are held against what is promised. Three fifths of the time go to harm. In the rest
each run is made again without any, in processes that live as long as there is time, so that their memory can be told to
be flat or not. In every third round, and in the unbroken distillation, loaders are processes of their own. The exit
code is 1 where anything was lost or a promise broken. Needs Linux; what a full disk and a read-only folder take
(mounting) is left out without root.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from tests import processes, tiny_run
from tests.faults import places
from tests.faults.memory import Sampler, growth
from tests.faults.rounds import (
    HANG_SECONDS,
    KILLS,
    WORLD,
    Harm,
    Lane,
    empty,
    end_for_it,
    kill_instead,
    send,
    spoil,
    summary,
    truncate,
    turn_a_bit_over,
)
from tests.processes import Launched
from tests.tracking.stores import Server, curve, mlflow_client

TOTAL_STEPS = 200_000  # more than any soak reaches: the schedule must not depend on how far it comes
EVALUATES_EVERY_STEPS = 3
ENOUGH = {"SIGKILL of one rank": 8, "SIGKILL of all ranks": 4}
"""How much more often than the others."""
LOADERS_EVERY = 3
"""Rounds in each of which ranks have loader processes, whose start takes most of a round."""
HARMED_SHARE = 3 / 5
FLAT_KIB_A_STEP = 1.0
"""A tenth of a gigabyte in a hundred thousand steps: in the last half of the time the interval must end below."""
LAST_STARTS = 3
"""A start that stops before its end waits for its store for ten seconds; a slow one gets what is left from the next."""
PATIENT = "train.hang_timeout_seconds=300"
"""A busy machine may be slow; where nothing is harmed nothing hangs."""
TRAIN = {
    "steps": TOTAL_STEPS,
    "save_every_steps": 5,
    "hang_timeout_seconds": HANG_SECONDS,
    "micro_batch_size": 16,
}
LEFTOVERS_STAY_SECONDS = 31.0
"""A start removes small unfinished files that are older than half a minute: a younger one may be somebody's."""


MUST_BE_NOTHING = (
    "steps missing",
    "steps with two losses",
    "largest difference from the unbroken run",
    "temporary files",
    "checkpoints went back",
)
MUST_BE = {"mlflow runs": 1, "each step once in mlflow": True}


class Soak:
    """The lanes, their stores, and what may happen to each."""

    def __init__(self, folder: Path, seed: int, can_mount: bool) -> None:
        chance = random.Random(seed)
        self.server = Server(folder)
        self.database = folder / "judged.db"
        distilled = Lane(write_distilled(folder / "distilled", self.server.uri), folder / "small" / "run", chance)
        judged = Lane(write_judged(folder / "judged", self.database), folder / "judged" / "run", chance)
        judged.evaluates_every_steps = EVALUATES_EVERY_STEPS
        self.lanes = {"distilled": distilled, "judged": judged}
        to_both: dict[str, Harm] = {
            **KILLS,
            "SIGSTOP of one rank": send(signal.SIGSTOP, to_all=False),
            "SIGTERM": send(signal.SIGTERM, to_all=True),
            "SIGUSR1 to one rank": send(signal.SIGUSR1, to_all=False),
            "a bit of a checkpoint turned over": spoil(turn_a_bit_over),
            "a checkpoint's file truncated": spoil(truncate),
            "a checkpoint's file emptied": spoil(empty),
        }
        by_mounting: dict[str, Harm] = {"disk full": fill_the_disk, "folder read-only": make_read_only}
        self.harms: dict[str, dict[str, Harm]] = {
            "distilled": to_both | {"MLflow server killed": self._kill_server} | (by_mounting if can_mount else {}),
            "judged": to_both | {"SQLite store locked for 4 s": self._lock_database},
        }

    def first_starts(self, logs: Path) -> None:
        """Each run has begun, and its store has tables, before anything goes wrong."""
        for name, lane in self.lanes.items():
            with processes.launched(
                lane.arguments("train.stop_after_step=6", PATIENT), WORLD, logs / f"{name}.log"
            ) as ranks:
                assert ranks.wait(300) == [0] * WORLD, ranks.log[-3000:]

    def rounds(self, seconds: float, logs: Path) -> None:
        """Harm the lanes in turn until the time is over."""
        until, number = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            name = "judged" if number % 3 == 2 else "distilled"
            lane, harms = self.lanes[name], self.harms[name]
            fault = lane.chance.choice([name for name in harms for _ in range(ENOUGH.get(name, 1))])
            loaders = f"data.num_workers={int(number % LOADERS_EVERY == 0)}"
            done = lane.round(fault, harms[fault], logs / f"{number:04d}.log", loaders)
            said = f"round {number}: {fault} at {done.moment}: codes {done.codes}, step {done.saved_after} saved"
            say("; ".join([said, *done.broken_promises]))
            number += 1
            self.server.start()

    def _kill_server(self, lane: Lane, ranks: Launched) -> bool:
        self.server.kill()
        time.sleep(lane.chance.uniform(0, 4))
        return KILLS["SIGKILL of one rank"](lane, ranks)

    def _lock_database(self, lane: Lane, ranks: Launched) -> bool:
        locked = False
        with suppress(sqlite3.Error), sqlite3.connect(self.database, timeout=5, isolation_level=None) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            locked = True
            time.sleep(4)
            writer.execute("ROLLBACK")
        send(signal.SIGTERM, to_all=True)(lane, ranks)
        return locked


def fill_the_disk(lane: Lane, ranks: Launched) -> bool:
    """The run's small file system has no room left until the run has ended for it; then there is again."""
    ballast = lane.run.parent / "ballast"
    places.fill(ballast)
    end_for_it(ranks)
    ballast.unlink()
    return True


def make_read_only(lane: Lane, ranks: Launched) -> bool:
    """Whatever is opened in the run's folder can't be written, until the run has ended for it."""
    if not lane.run.exists():
        return kill_instead(lane, ranks)
    with places.read_only(lane.run):
        end_for_it(ranks)
    return True


def write_distilled(folder: Path, uri: str) -> Path:
    folder.mkdir()
    tracking = {"enabled": True, "uri": uri, "system_metrics_seconds": 10, "drain_seconds": 5, "pictures": False}
    return tiny_run.write_recipe(
        folder, train=TRAIN, tracking=tracking, teachers={"use": ["red"]}, data={"num_workers": 1}
    )


def write_judged(folder: Path, database: Path) -> Path:
    folder.mkdir()
    tracking = {"enabled": True, "uri": f"sqlite:///{database}", "system_metrics_seconds": 0, "drain_seconds": 5}
    return tiny_run.write_recipe(
        folder,
        task="classify",
        train={**TRAIN, "eval_every_epochs": EVALUATES_EVERY_STEPS * 32 / 1437},
        tracking={**tracking, "pictures": False},
        classify={"mix_probability": 0.0},
    )


def unharmed(lane: Lane, run: Path, last_step: int, until: float, log: Path) -> Sampler:
    """The same run in another folder without any harm, to the same step and on until the time; its ranks' memory.

    It is tracked as the other one is, in an experiment of its own: what sends the points may leak too.
    """
    twin = Lane(lane.recipe, run, lane.chance)
    with processes.launched(
        twin.arguments("tracking.experiment=unbroken", PATIENT), WORLD, log, cwd=run.parent
    ) as ranks:
        with Sampler(ranks.pids, run) as sampler:
            while sampler.newest_step() < last_step or time.monotonic() < until:
                assert ranks.codes() == [None] * WORLD, ranks.log[-3000:]
                time.sleep(0.5)
        for pid in ranks.pids:
            os.kill(pid, signal.SIGTERM)
        assert ranks.wait(300) == [0] * WORLD, ranks.log[-3000:]
    return sampler


def verdict(lane: Lane, twin: Lane, uri: str, experiment: str = "dmt_ds") -> dict[str, Any]:
    """What the soak shows of one lane."""
    losses, plain = lane.losses(), twin.losses()
    last = max(losses)
    client = mlflow_client(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id])
    in_store = [step for step, _ in curve(uri, runs[0].info.run_id)]
    return {
        "steps": last,
        "steps missing": sorted(set(range(1, last + 1)) - set(losses))[:5],
        "steps with two losses": sorted(step for step, values in losses.items() if len(values) > 1)[:5],
        "largest difference from the unbroken run": max(
            abs(next(iter(losses[step])) - next(iter(plain[step]))) for step in range(1, last + 1)
        ),
        "steps done again after a harm": sum("train/loss" in p["metrics"] for p in lane.points()) - len(losses),
        "mlflow runs": len(runs),
        "each step once in mlflow": in_store == list(range(1, last + 1)),
        "temporary files": lane.temporary_files(),
        "checkpoints went back": sum(done.went_back and "checkpoint" not in done.fault for done in lane.rounds),
        "ranks that a launcher had to end, all at the start": [
            sum(not done.ended_alone for done in lane.rounds),
            all(done.ended_alone or done.moment == "start" for done in lane.rounds),
        ],
        "seconds until all ranks had ended, longest": round(max(done.seconds for done in lane.rounds), 1),
    }


def orphans(before: set[int]) -> list[str]:
    """Processes of this session that nobody waits for any more; the server and the forge are known."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        with suppress(OSError, psutil.Error):
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and process.pid not in before and os.getsid(process.pid) == os.getsid(0):
                found.append(" ".join(process.info["cmdline"])[:100])
    return found


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def soak(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    """All of it; the figures."""
    logs = folder / "logs"
    logs.mkdir(parents=True)
    with ExitStack() as stack:
        small = folder / "small"
        small.mkdir()
        can_mount = places.can_mount()
        if can_mount:
            stack.enter_context(places.small_disk(small, mib=64))
        lanes = Soak(folder, seed, can_mount)
        stack.callback(lanes.server.kill)
        lanes.server.start()
        forge = processes._forge().pid
        began = time.monotonic()
        lanes.first_starts(logs)
        lanes.rounds(minutes * 60 * HARMED_SHARE, logs)
        harmed_seconds = time.monotonic() - began
        figures: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "minutes": minutes, "seed": seed}
        figures["harmed minutes"] = round(harmed_seconds / 60, 1)
        time.sleep(LEFTOVERS_STAY_SECONDS)
        ends = began + minutes * 60
        for number, (name, lane) in enumerate(lanes.lanes.items()):
            left = (ends - time.monotonic()) / (len(lanes.lanes) - number)
            try:
                figures[name] = finish(lanes, name, lane, time.monotonic() + left, folder, logs)
            except Exception as error:  # what the other lane shows is not lost
                figures[name] = {"error": f"{type(error).__name__}: {error}"[-2000:]}
        known = {
            os.getpid(),
            forge,
            *(child.pid for child in psutil.Process(forge).children() if "tracker" in " ".join(child.cmdline())),
        }
        figures["orphans"] = orphans(known)
        figures["rounds"] = summary([done for lane in lanes.lanes.values() for done in lane.rounds])
        figures["minutes in all"] = round((time.monotonic() - began) / 60, 1)
        return figures


def finish(lanes: Soak, name: str, lane: Lane, until: float, folder: Path, logs: Path) -> dict[str, Any]:
    """Last attempts without harm, the unbroken twin, and what the two show."""
    if not lane.losses():
        return {"steps": 0}
    last = max(lane.losses()) + 5
    for _ in range(LAST_STARTS):
        last += 1
        arguments = lane.arguments(f"train.stop_after_step={last}", "tracking.drain_seconds=120", PATIENT)
        with processes.launched(arguments, WORLD, logs / f"{name}.log") as ranks:
            assert ranks.wait(600) == [0] * WORLD, ranks.log[-3000:]
    say(f"{name}: stands at step {last}; the same without harm")
    run = folder / f"unbroken-{name}"
    sampler = unharmed(lane, run, last, until, logs / f"unbroken-{name}.log")
    uri = lanes.server.uri if name == "distilled" else f"sqlite:///{lanes.database}"
    memory = {"memory": growth(sampler.samples), "samples": sampler.samples}
    try:
        return {**verdict(lane, Lane(lane.recipe, run, lane.chance), uri), **memory}
    except Exception as error:  # what took ten minutes to find is not lost
        return {"error": f"{type(error).__name__}: {error}"[-2000:], **memory}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--minutes", type=float, default=60)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--out", type=Path, required=True, help="JSON of figures")
    words.add_argument("--folder", type=Path, help="kept; else a temporary one")
    asked = words.parse_args()
    os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    os.nice(3)
    with suppress(PermissionError):
        os.setsid()
    with tempfile.TemporaryDirectory() as temporary:
        figures = soak(asked.folder or Path(temporary), asked.minutes, asked.seed)
    figures["not as promised"] = shortcomings(figures)
    asked.out.write_text(json.dumps(figures, indent=1) + "\n")
    short = {key: {**value, "samples": None} if isinstance(value, dict) else value for key, value in figures.items()}
    say(f"{asked.out}: {json.dumps({**short, 'rounds': None}, indent=1)}")
    sys.exit(1 if figures["not as promised"] else 0)


def shortcomings(figures: dict[str, Any]) -> list[str]:
    """Everything that is not as docs/reliability.md promises it."""
    found = [*figures["rounds"]["broken promises"], *(f"left behind: {orphan}" for orphan in figures["orphans"])]
    for name in ("distilled", "judged"):
        lane = figures[name]
        if "error" in lane:
            found.append(f"{name}: {lane['error']}")
            continue
        found += [f"{name}: {key}: {lane[key]}" for key in MUST_BE_NOTHING if lane[key]]
        found += [f"{name}: {key}: {lane[key]}" for key, wanted in MUST_BE.items() if lane[key] != wanted]
        found += [
            f"{name}: memory of {who} may grow by more than {FLAT_KIB_A_STEP} KiB a step"
            for who, each in lane["memory"].items()
            if each["KiB a step, last half"] + each["last half, 95 % within +-"] > FLAT_KIB_A_STEP
        ]
    return found


if __name__ == "__main__":
    main()

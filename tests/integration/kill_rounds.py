"""Run by test_killed_saves: two ranks that save after every step, killed at random moments again and again.

The ranks of each round are forked from one process that has imported everything, so a round takes seconds.

    python kill_rounds.py RECIPE ROUNDS SEED
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import deepspeed  # noqa: F401  imported once for all rounds; starts no thread

from dmt_ds.commands.training import pretrain
from dmt_ds.config.load import load_config
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder
from tests.processes import free_port

WORLD = 2


def fork_rank(rank: int, port: int, recipe: str) -> int:
    """Start one rank in a process of its own; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    log = os.open(f"{recipe}.rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os._exit(pretrain.run(load_config(recipe)))


def wait_for_a_save(checkpoints: Path, seconds: float) -> bool:
    """Wait until this round has begun to save."""
    before = {p.name for p in checkpoints.glob("*step*")}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if {p.name for p in checkpoints.glob("*step*")} - before:
            return True
        time.sleep(0.01)
    return False


def main() -> None:
    recipe, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    checkpoints = Path(load_config(recipe).output_dir) / "checkpoints"
    report = []
    newest_step = 0
    for _ in range(rounds):
        port = free_port()
        pids = [fork_rank(rank, port, recipe) for rank in range(WORLD)]
        began = wait_for_a_save(checkpoints, 120)
        time.sleep(chance.uniform(0, 0.5))
        victim = chance.randrange(WORLD)
        os.kill(pids[victim], signal.SIGKILL)
        time.sleep(chance.uniform(0, 0.3))  # the other rank goes on for a while, as until a launcher notices
        os.kill(pids[1 - victim], signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        in_save = bool(list(checkpoints.glob(".tmp-step*")))
        found = CheckpointFolder(checkpoints, keep=2).newest()
        step = found.state.step if found else 0
        report.append(
            {"began": began, "victim": victim, "in_save": in_save, "step": step, "went_back": step < newest_step}
        )
        newest_step = step
    sys.stdout.write("REPORT " + json.dumps(report) + "\n")


if __name__ == "__main__":
    main()

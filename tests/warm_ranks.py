"""Started by `processes`: imports what a run imports, once, and forks the ranks of each run that it is told of.

Imports take longer than a tiny run (four seconds of CPU a rank); nothing else is shared: each rank is a process of its
own with its own engine and group. How ranks start and fail for real is tested through Python and torch's launcher.

Told by a line of JSON, answers by one:
    {"do": "run", "arguments", "processes", "cwd", "stdout", "stderr", "timeout"} -> {"codes"}: run to the end
    {"do": "start", as above, "environment", "harm"} -> {"pids"}: nobody ends the others when one fails
    {"do": "look"} -> {"codes": {pid: exit code}} of all that were started and have ended
"""

import importlib
import json
import multiprocessing
import os
import runpy
import sys
import time
from multiprocessing.process import BaseProcess

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  DeepSpeed would import it in `initialize`
import matplotlib.backends.backend_agg  # noqa: F401
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import sklearn.datasets  # noqa: F401
import timm  # noqa: F401

from dmt_ds.commands.readouts import evaluate  # noqa: F401
from tests.processes import free_port

FORK = multiprocessing.get_context("fork")
started: dict[int, BaseProcess] = {}


def rank_of_a_run(rank: int, port: int, told: dict) -> None:
    """`-m MODULE ...` with output to a file, as torch's launcher would have started it where there are several."""
    appended = os.O_WRONLY | os.O_APPEND
    for standard, path, flags in (
        (0, os.devnull, os.O_RDONLY), (1, told["stdout"], appended), (2, told["stderr"], appended),
    ):  # fmt: skip
        os.dup2(os.open(path, flags), standard)
    os.chdir(told["cwd"])
    os.environ.update(told.get("environment", {}))
    if told["processes"] > 1:
        world = str(told["processes"])
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world, LOCAL_WORLD_SIZE=world, **where)
    if harm := told.get("harm"):
        module, _, name = harm["function"].rpartition(".")
        getattr(importlib.import_module(module), name)(rank, *harm["arguments"])
    _, module, *arguments = told["arguments"]
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def start(told: dict) -> list[BaseProcess]:
    port = free_port()
    ranks = [FORK.Process(target=rank_of_a_run, args=(rank, port, told)) for rank in range(told["processes"])]
    for rank in ranks:
        rank.start()
    return ranks


def run(told: dict) -> list[int | None]:
    """Exit codes of the ranks; when one fails, or the time is over, the others are ended."""
    ranks = start(told)
    deadline = time.monotonic() + told["timeout"]
    while any(rank.is_alive() for rank in ranks) and time.monotonic() < deadline:
        if any(rank.exitcode for rank in ranks):
            deadline = min(deadline, time.monotonic() + 15)
        time.sleep(0.02)
    return [ended(rank) for rank in ranks]


def ended(rank: BaseProcess) -> int | None:
    if rank.is_alive():
        rank.kill()
    rank.join()
    return rank.exitcode


def answer(told: dict) -> dict[str, object]:
    if told["do"] == "run":
        return {"codes": run(told)}
    if told["do"] == "start":
        ranks = start(told)
        started.update({rank.pid: rank for rank in ranks})
        return {"pids": [rank.pid for rank in ranks]}
    return {"codes": {pid: rank.exitcode for pid, rank in started.items() if not rank.is_alive()}}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

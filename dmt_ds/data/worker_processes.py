"""How loader processes start and end; knows nothing of what they do.

They come from a server process that is started early and has no thread, no CUDA context and no InfiniBand memory:
forking the training process itself, with DeepSpeed's, NCCL's and MLflow's threads in it, can deadlock.

A scheduler signals every process of a job. Server and workers have these signals blocked, so that the trainer alone
answers: workers that died of SIGUSR1 would spoil the checkpoint that it asks for.
"""

import os
import signal
import sys
import threading
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import ForkServerContext
from types import TracebackType

_PRELOADED = ["dmt_ds.data.batch_maker", "torchvision.io", "torchvision.transforms.v2.functional"]
"""Imported once, not by each worker."""
_WATCH_SECONDS = 1.0
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


def start_server() -> ForkServerContext:
    """Start the server unless it runs, without waiting for it; gives the context that makes processes with it."""
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    resource_tracker.ensure_running()  # first: it would unblock the signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def obey_trainer(_worker: int) -> None:
    """End this worker, however stuck it is, when the trainer is gone or sends SIGTERM; nobody else's counts.

    torch watches the parent for that, but a worker's parent is the server, which itself lives as long as a worker does.
    """
    sys.excepthook = _tell_unless_trainer_left
    threading.Thread(target=_exit_with_trainer, daemon=True).start()


def _tell_unless_trainer_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's thread that hands images over would print a traceback when the trainer is killed meanwhile."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _exit_with_trainer() -> None:
    trainer = parent_process()  # the process that asked for this one, though the server forked it
    assert trainer is not None
    while trainer.is_alive():
        told = signal.sigtimedwait({signal.SIGTERM}, _WATCH_SECONDS)
        if told is not None and told.si_pid == trainer.pid:
            break
    os._exit(0)

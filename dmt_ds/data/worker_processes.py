"""How loader processes start and end; knows nothing of what they do.

They come from a server process that is started early and has no thread, no CUDA context and no InfiniBand memory:
forking the training process itself, with DeepSpeed's, NCCL's and MLflow's threads in it, can deadlock.

A scheduler signals every process of a job. Server and workers have these signals blocked, so that the trainer alone
answers: workers that died of SIGUSR1 would spoil the checkpoint that it asks for.
"""

import os
import signal
import threading
from multiprocessing import forkserver, get_context, resource_tracker
from multiprocessing.context import ForkServerContext

_PRELOADED = ["dmt_ds.data.batch_maker"]  # torch and torchvision are imported once, not by each worker
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


def obey_trainer(trainer: int, _worker: int) -> None:
    """In a worker: let SIGTERM from the trainer's process, and from no other, end it, however stuck it is."""
    threading.Thread(target=_exit_at_sigterm_of, args=(trainer,), daemon=True).start()


def _exit_at_sigterm_of(process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)

"""How loader processes are started; knows nothing of what they do.

They come from a server process that is started early and has no thread, no CUDA context and no InfiniBand memory:
forking the training process itself, with DeepSpeed's, NCCL's and MLflow's threads in it, can deadlock.
"""

import signal
from multiprocessing import forkserver, get_context, resource_tracker
from multiprocessing.context import ForkServerContext

_PRELOADED = ["dmt_ds.data.batch_maker"]  # torch and torchvision are imported once, not by each worker
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


def start_server() -> ForkServerContext:
    """Start the server unless it runs, without waiting for it; gives the context that makes processes with it.

    A scheduler signals every process of a job. Server and workers have these signals blocked, so that the trainer
    alone answers: workers that died of SIGUSR1 would spoil the checkpoint that it asks for. They leave when their
    queue is closed, or when the trainer is gone.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    resource_tracker.ensure_running()  # first: it would unblock the signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context

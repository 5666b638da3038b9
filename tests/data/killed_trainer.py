"""A trainer that names its loader processes and is killed while they are at work."""

import multiprocessing
import os
import signal
from multiprocessing import forkserver

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.batch_maker import TrainBatchMaker
from dmt_ds.data.loader import TrainLoader
from dmt_ds.data.sampling import SampleStream
from dmt_ds.data.sources import open_source
from dmt_ds.data.views import CropSpec

if __name__ == "__main__":
    source = open_source(DataConfig(), "val")
    maker = TrainBatchMaker(source, [CropSpec(32)], run_seed=0, bad_images="stop")
    loader = TrainLoader(maker, SampleStream(len(source), 0), micro_batch_size=4, num_workers=1)
    batches = loader.batches(0, 1000, 1)
    next(batches)
    workers = [child.pid for child in multiprocessing.active_children()]
    print(forkserver._forkserver._forkserver_pid, *workers, flush=True)  # type: ignore[attr-defined]
    os.kill(os.getpid(), signal.SIGKILL)

"""Batches of crops from loader processes, in an order that all ranks share; knows no file format and no loss."""

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from torch.utils.data import DataLoader

from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import BatchMaker, Job, Made
from dmt_ds.data.cores import cores_of_rank, usable_workers
from dmt_ds.data.sampling import SampleStream, rank_positions
from dmt_ds.data.worker_processes import obey_trainer, start_server
from dmt_ds.errors import DataError

logger = logging.getLogger(__name__)

BATCHES_AHEAD = 2  # a worker; each holds micro_batch_size crops in shared memory


class TrainLoader:
    """One rank's micro-batches of a run; holds no position, so a run goes on from any.

    Attributes:
        cores: that this rank may use.
        num_workers: loader processes that it takes.
    """

    def __init__(
        self,
        maker: BatchMaker,
        stream: SampleStream,
        *,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        local_world_size: int = 1,
        num_workers: int | Literal["auto"] = 0,
        pin_memory: bool = False,
    ) -> None:
        """Start what takes seconds (the server that loader processes come from), and return at once.

        Loader processes import the script that started them: with `num_workers` above 0 it must do so under
        `if __name__ == "__main__":` only.

        Args:
            maker: makes a batch of the rows that `stream` names.
            local_world_size: ranks on this node, which share its CPU cores.
            num_workers: loader processes; 0 decodes in this one, `auto` takes as many as there are cores for.
        """
        self._maker, self._stream, self._micro_batch_size = maker, stream, micro_batch_size
        self._rank, self._world_size = rank, world_size
        self.cores = cores_of_rank(local_world_size)
        self.num_workers = usable_workers(num_workers, local_world_size)
        self._pin_memory = pin_memory
        self._logged: set[str] = set()
        if self.num_workers:
            start_server()

    def batches(self, start_image: int, num_micro_steps: int, grad_accum_steps: int) -> Iterator[Batch]:
        """This rank's next micro-batches, step by step.

        Args:
            start_image: images that the run has seen, over all ranks.
            num_micro_steps: micro-batches to give.
            grad_accum_steps: micro-steps a step.

        Raises:
            DataError: an image can't be read (named), or a loader process was killed.
            StorageError: the disk or file server of an image gives no answer.
        """
        jobs = self._jobs(start_image, num_micro_steps, grad_accum_steps)
        for made in _made(self._maker, jobs, self.num_workers, self._pin_memory):
            for message in made.unreadable:
                if message not in self._logged:
                    self._logged.add(message)
                    logger.warning("skipped: %s", message)
            assert made.batch is not None
            yield made.batch

    def _jobs(self, start_image: int, num_micro_steps: int, grad_accum_steps: int) -> Iterator[Job]:
        images_a_step = self._micro_batch_size * self._world_size * grad_accum_steps
        for number in range(num_micro_steps):
            step, micro_step = divmod(number, grad_accum_steps)
            positions = rank_positions(
                start_image + step * images_a_step, micro_step, self._rank, self._world_size, self._micro_batch_size
            )
            epochs, rows = self._stream.at(positions.start, len(positions))
            yield epochs.tolist(), rows.tolist()


def every_image(
    maker: BatchMaker,
    num_images: int,
    batch_size: int,
    num_workers: int | Literal["auto"] = 0,
    local_world_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Every image once, in order; a row of `num_images` or more fills a batch up, and must not count.

    Args:
        local_world_size: ranks on this node, which share its CPU cores.
        rank: gets every `world_size`-th image. All ranks get equally many batches, and as many images in each.
        world_size: ranks that share the images.

    Raises:
        DataError: an image can't be read (named), or a loader process was killed.
        StorageError: the disk or file server of an image gives no answer.
    """
    share = [rank + turn * world_size for turn in range(math.ceil(num_images / world_size))]
    rows = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    jobs: list[Job] = [([0] * len(batch), batch) for batch in rows]
    for made in _made(maker, jobs, usable_workers(num_workers, local_world_size), pin_memory=False):
        assert made.batch is not None
        yield made.batch


def _made(maker: BatchMaker, jobs: Iterable[Job], num_workers: int, pin_memory: bool) -> Iterator[Made]:
    """The jobs' results in order."""
    any_came = False
    loader: DataLoader[Made] = DataLoader(
        maker,
        batch_size=None,
        sampler=jobs,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        prefetch_factor=BATCHES_AHEAD if num_workers else None,
        multiprocessing_context=start_server() if num_workers else None,
        worker_init_fn=obey_trainer,
    )
    try:
        for made in loader:
            any_came = True
            if made.failure is not None:
                raise made.failure
            yield made
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        if not num_workers or not _worker_died(error):
            raise
        raise DataError(_told_of_death(num_workers, any_came)) from None


def _told_of_death(num_workers: int, any_came: bool) -> str:
    memory = (
        "was killed, most likely because memory ran out: set data.num_workers below "
        f"{num_workers}, or give the job more memory (and /dev/shm more room)"
    )
    if any_came:
        return f"a loader process of this rank {memory}"
    guard = 'in a script of your own, start all work under `if __name__ == "__main__":`'
    return f"a loader process of this rank ended before it gave any images: {guard}; otherwise it {memory}"


def _worker_died(error: Exception) -> bool:
    """Whether a worker was killed, rather than raised: then torch says "Caught"."""
    if "Caught " in str(error):
        return False
    return "DataLoader worker" in str(error) or not isinstance(error, RuntimeError)


def _as_it_is(made: Any) -> Any:
    return made

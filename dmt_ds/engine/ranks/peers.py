"""When one rank fails, the others learn why and end too, instead of waiting in a collective; knows no training."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as torch_dist

from dmt_ds.engine import dist
from dmt_ds.engine.ranks.neighbours import Place
from dmt_ds.errors import DmtError, PeerFailedError

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
_LINGER_SECONDS = 2.5 * POLL_SECONDS  # rank 0 may host the store: it must outlive the others' next look
_KEY = "dmt_ds/failure"


class Peers:
    """One note that any rank can leave for all others: why the job ends.

    Attributes:
        here: this rank's process.
        places: all ranks' processes.
    """

    def __init__(self) -> None:
        """Join; the process group must be up, if there is one. All ranks call."""
        several = dist.world_size() > 1
        self.here = Place.of_this_process(dist.rank())
        self.places = dist.gather_objects(self.here)
        self._store = torch_dist.distributed_c10d._get_default_store() if several else None
        self._reason: str | None = None
        self._closed = threading.Event()
        # A thread of its own: where the rank that hosts the store was stopped, looking never ends.
        self._looker = threading.Thread(target=self._look, name="peers", daemon=True)

    def reason(self) -> str | None:
        """The note, such as `rank 3: data/x.jpg: truncated`; None while all is well, or where the store is gone."""
        return self._reason

    def _look(self) -> None:
        while self._store is not None and self._reason is None and not self._closed.wait(POLL_SECONDS):
            try:
                if self._store.check([_KEY]):
                    self._reason = str(self._store.get(_KEY), "utf-8")
            except RuntimeError:  # the rank that hosted the store has left
                return

    @contextmanager
    def together(self) -> Iterator[None]:
        """Announce this rank's failure, and recognise a peer's, around all that a rank does.

        Raises:
            PeerFailedError: instead of the error of a collective that broke because a peer left.
        """
        self._looker.start()
        try:
            yield
        except PeerFailedError:
            raise
        except DmtError as error:
            if self.announce(str(error)):
                time.sleep(_LINGER_SECONDS)
            raise
        except Exception as error:
            reason = self._wait_for_reason()
            if reason is None and isinstance(error, RuntimeError):
                reason = self._who_is_gone()
            if reason is not None:
                raise PeerFailedError(reason) from error
            if self.announce(f"{type(error).__name__}: {error}"):
                time.sleep(_LINGER_SECONDS)
            raise
        finally:
            self._closed.set()
            self._looker.join(POLL_SECONDS)  # a thread that is within the store when Python ends would abort it

    def announce(self, message: str) -> bool:
        """Leave the note, unless there is one; whether that was done."""
        if self._store is None or self._reason is not None:
            return False
        try:
            self._store.set(_KEY, f"rank {dist.rank()}: {message}")
        except RuntimeError as error:
            logger.debug("the other ranks can't be notified: %s", error)
            return False
        return True

    def _who_is_gone(self) -> str | None:
        """The message about a rank of this node that left no note; rank 0's command prints it, other ranks log it."""
        gone = [place for place in self.places if place.is_gone_beside(self.here)]
        if not gone:
            return None
        found = (
            f"rank {gone[0].rank} (pid {gone[0].pid}) died without a message: it crashed, was killed, or ran out of "
            "memory. Start again to resume from the newest checkpoint"
        )
        if not dist.is_main():
            logger.error("rank %d: %s", dist.rank(), found)
        return found

    def _wait_for_reason(self) -> str | None:
        deadline = time.monotonic() + _LINGER_SECONDS
        while self._store is not None and time.monotonic() < deadline:
            if (reason := self.reason()) is not None:
                return reason
            time.sleep(0.1)
        return None

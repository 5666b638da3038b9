"""When one rank fails, the others learn why and end too, instead of waiting in a collective; knows no training."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as torch_dist

from dmt_ds.engine import dist
from dmt_ds.errors import DmtError, PeerFailedError

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
_LINGER_SECONDS = 2.5 * POLL_SECONDS  # rank 0 may host the store: it must outlive the others' next look
_KEY = "dmt_ds/failure"


class Peers:
    """One note that any rank can leave for all others: why the job ends."""

    def __init__(self) -> None:
        """Join; the process group must be up, if there is one."""
        several = dist.world_size() > 1
        self._store = torch_dist.distributed_c10d._get_default_store() if several else None

    def reason(self) -> str | None:
        """The note, such as `rank 3: data/x.jpg: truncated`; None while all is well, or where the store is gone."""
        if self._store is None:
            return None
        try:
            return str(self._store.get(_KEY), "utf-8") if self._store.check([_KEY]) else None
        except RuntimeError:  # the rank that hosted the store has left
            return None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around all that a rank does: its failure is announced, and a peer's is recognised.

        Raises:
            PeerFailedError: instead of the error of a collective that broke because a peer left.
        """
        try:
            yield
        except PeerFailedError:
            raise
        except DmtError as error:
            self._announce(str(error))
            raise
        except Exception as error:
            reason = self._wait_for_reason()
            if reason is not None:
                raise PeerFailedError(reason) from error
            self._announce(f"{type(error).__name__}: {error}")
            raise

    def _announce(self, message: str) -> None:
        if self._store is None or self.reason() is not None:
            return
        try:
            self._store.set(_KEY, f"rank {dist.rank()}: {message}")
            time.sleep(_LINGER_SECONDS)
        except RuntimeError as error:
            logger.debug("the other ranks can't be told: %s", error)

    def _wait_for_reason(self) -> str | None:
        deadline = time.monotonic() + _LINGER_SECONDS
        while self._store is not None and time.monotonic() < deadline:
            if (reason := self.reason()) is not None:
                return reason
            time.sleep(0.1)
        return None

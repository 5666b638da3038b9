"""The thread that carries a spool's content to a store, however long that takes; knows the store by its verbs."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from dmt_ds.tracking.journal import Journal, Record
from dmt_ds.tracking.spool import Spool

logger = logging.getLogger(__name__)

_POLL_SECONDS = 2.0
_FINISHING_SECONDS = 0.5
_FIRST_DELAY_SECONDS = 1.0
_LONGEST_DELAY_SECONDS = 30.0
_SILENCE_SECONDS = 600.0  # between two warnings of the same outage
_DOUBTED_SECONDS = 60.0  # for which one item is tried again while the store takes others
_LINES_AT_ONCE = 200


class StoreAway(Exception):
    """The store doesn't take anything now; it may later."""


class ItemDoubted(StoreAway):
    """The store answers, and does not take this item: a bad one, or its database is in trouble."""


class ItemRefused(Exception):
    """The store answers, and will never take this item."""


class RunInStore(Protocol):
    """One run of a store that is being written to; sending twice changes nothing.

    Every verb may raise `StoreAway`, `ItemDoubted` where the store takes other things all the while, and `ItemRefused`
    once all that it takes of the item is there.
    """

    run_id: str

    def log_points(self, points: list[Record]) -> None:
        """Add points of curves; those that the store has already are left out."""
        ...

    def apply(self, record: Record) -> None:
        """Add a param, tag, file or data set, or set the status."""
        ...


@dataclass
class _Doubt:
    """What the store did not take of one journal.

    Attributes:
        since: when it first did not take the item that is next; None once it has taken another one.
        until: the byte up to which lines are sent one by one, so that a bad one costs no other.
    """

    since: float | None
    until: int


class Shipper(threading.Thread):
    """Carries lines in order, and confirms them once they have arrived."""

    def __init__(self, spool: Spool, open_run: Callable[[], RunInStore], where: str) -> None:
        super().__init__(name="tracking-shipper", daemon=True)
        self._spool = spool
        self._open_run = open_run
        self._where = where
        self._run: RunInStore | None = None
        self._finish_asked = threading.Event()
        self._stopped = False
        self._away_since: float | None = None
        self._last_warning = float("-inf")
        self._doubts: dict[Journal, _Doubt] = {}
        self._num_refused = 0

    def finish(self, drain_seconds: float) -> bool:
        """Ship what is left and end; waits no longer than that. Returns whether everything has arrived."""
        self._finish_asked.set()
        self.join(drain_seconds)
        self._stopped = True
        return not self.is_alive() and self._all_arrived()

    def run(self) -> None:
        """Ship until finished."""
        delay = _FIRST_DELAY_SECONDS
        while not self._stopped:
            try:
                self._ship()
                delay = _FIRST_DELAY_SECONDS
            except StoreAway as error:
                self._say_away(str(error))
                delay = min(delay * 2, _LONGEST_DELAY_SECONDS)
            except Exception as error:
                # A bug here must cost points on a page, never a training run.
                logger.debug("unexpected error", exc_info=True)
                self._say_away(f"unexpected {type(error).__name__}: {error}")
                self._run = None
                delay = min(delay * 2, _LONGEST_DELAY_SECONDS)
            if self._finish_asked.is_set() and self._run is not None and self._all_arrived():
                return
            if self._finish_asked.is_set():
                time.sleep(_FINISHING_SECONDS)
            else:
                self._finish_asked.wait(_POLL_SECONDS if self._run else delay)

    def _all_arrived(self) -> bool:
        try:
            return self._spool.is_empty()
        except OSError:
            return False

    def _ship(self) -> None:
        if not self._spool.lock.acquire(wait=False):
            raise StoreAway("another process is sending this run's points")
        try:
            self._run = self._run or self._open_run()
            self._ship_points(self._run, self._spool.metrics)
            self._ship_points(self._run, self._spool.system)
            self._ship_records(self._run)
        except StoreAway:
            self._run = None
            raise
        self._say_back()

    def _ship_points(self, run: RunInStore, journal: Journal) -> None:
        while not self._stopped:
            points, offset = self._spool.unshipped(journal, 1 if journal in self._doubts else _LINES_AT_ONCE)
            if not points:
                return
            self._send(partial(run.log_points, points), journal, offset)

    def _ship_records(self, run: RunInStore) -> None:
        self._spool.copy_again()
        while not self._stopped:
            records, offset = self._spool.unshipped(self._spool.records, max_lines=1)
            if not records:
                return
            self._send(partial(run.apply, records[0]), self._spool.records, offset)

    def _send(self, send: Callable[[], None], journal: Journal, offset: int) -> None:
        """Returns once the store has what lies before `offset`, or will never take it: that holds up nothing else."""
        try:
            send()
        except ItemDoubted as error:
            if not self._is_doubted_for_long(journal, offset):
                raise
            self._give_up(error)
        except ItemRefused as error:
            self._give_up(error)
        self._spool.confirm(journal, offset)
        if (doubt := self._doubts.get(journal)) is not None:
            doubt.since = None
            if offset >= doubt.until:
                del self._doubts[journal]

    def _is_doubted_for_long(self, journal: Journal, offset: int) -> bool:
        """What the store takes of other journals says nothing of this one's next item."""
        now = time.monotonic()
        doubt = self._doubts.setdefault(journal, _Doubt(now, offset))
        doubt.since = doubt.since or now
        return now - doubt.since >= _DOUBTED_SECONDS

    def _give_up(self, error: Exception) -> None:
        self._num_refused += 1
        logger.warning("MLflow at %s: not recorded: %s", self._where, error)

    def _say_away(self, reason: str) -> None:
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._last_warning > _SILENCE_SECONDS:
            self._last_warning = now
            logger.warning(
                "MLflow at %s: %s; points wait in %s and are sent later", self._where, reason, self._spool.folder
            )

    def _say_back(self) -> None:
        if self._away_since is not None:
            seconds = time.monotonic() - self._away_since
            lost = f"{self._num_refused} items were refused" if self._num_refused else "none is lost"
            logger.info("MLflow at %s takes points again after %.0f s; %s", self._where, seconds, lost)
        self._away_since, self._last_warning, self._num_refused = None, float("-inf"), 0

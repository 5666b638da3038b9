"""The records of all that a run trains, from their opening to their end: whatever fails closes them all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from dmt_ds.commands.training.record import FAILURE_TAG, describe, open_record
from dmt_ds.commands.training.run_log import failure_line
from dmt_ds.commands.training.take_over import ClaimedRun
from dmt_ds.engine.ranks.peers import Peers
from dmt_ds.engine.ranks.stopping import Watchdog
from dmt_ds.errors import CheckpointError
from dmt_ds.tracking.tracker import Status, Tracker
from dmt_ds.wording import one_line

_NONE: Mapping[str, str] = MappingProxyType({})


class OpenRecords:
    """One tracker a member, opened one after the other; the watchdog closes them where the process has to end.

    Attributes:
        trackers: all that are open.
    """

    def __init__(self, log: Path, store_seconds: float, watchdog: Watchdog) -> None:
        """Nothing is open yet.

        Args:
            log: what the run has said, kept with each record at its end.
            store_seconds: how long all records together may take to their end.
        """
        self.trackers: list[Tracker] = []
        self._log = log
        self._store_seconds = store_seconds
        self._watchdog = watchdog
        watchdog.last_words = self.fail
        watchdog.last_words_seconds = store_seconds

    def open(self, member: ClaimedRun) -> Tracker:
        """The member's record, with all that describes the run in it.

        Raises:
            TrackingError: the store can't be used at all.
            CheckpointError: a file of it can't be written, or a newer attempt has taken the run over.
        """
        tracker = open_record(member.run, member.resume, member.fence)
        self.trackers.append(tracker)
        describe(tracker, member.run, member.built, member.fence, member.resume)
        return tracker

    @contextmanager
    def closed_on_failure(self, peers: Peers) -> Iterator[None]:
        """What ends the block early ends the records too, with the reason."""
        try:
            yield
        except KeyboardInterrupt:
            self._end_early("KILLED")
            raise
        except BaseException as error:
            self.fail(peers.reason() or failure_line(error))
            raise

    def fail(self, reason: str) -> None:
        """The run has failed."""
        self._end_early("FAILED", {FAILURE_TAG: one_line(reason)})

    def finish(self, status: Status) -> None:
        """The run has come to its end, or was stopped after a save.

        Raises:
            CheckpointError: a newer attempt has taken the run over.
        """
        self._allow_for_the_store()
        for tracker in self.trackers:
            tracker.log_artifact(self._log)
            tracker.finish(status)

    def _end_early(self, status: Status, tags: Mapping[str, str] = _NONE) -> None:
        """An attempt whose run was taken over leaves the record to the one that has it now."""
        self._allow_for_the_store()
        for tracker in self.trackers:
            with suppress(CheckpointError):
                if tags:
                    tracker.set_tags(tags)
                tracker.log_artifact(self._log)
                tracker.finish(status)

    def _allow_for_the_store(self) -> None:
        """Waiting for an unreachable store is no hang, and must not hide the failure that the job should end with."""
        self._watchdog.beat("sending the last metrics", self._store_seconds)

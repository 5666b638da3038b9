"""The note by which ranks learn why the job ends, of ranks in one process; of real ones: `tests.faults.test_ranks`."""

import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch.distributed as torch_dist

from dmt_ds.engine import dist
from dmt_ds.engine.ranks import peers
from dmt_ds.engine.ranks.neighbours import Place
from dmt_ds.engine.ranks.peers import Peers
from dmt_ds.errors import DataError, PeerFailedError


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[Peers]:
    """Two that share a store, and look often."""
    monkeypatch.setattr(peers, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(peers, "_LINGER_SECONDS", 0.3)
    store, made = torch_dist.HashStore(), [Peers(), Peers()]
    for rank in made:
        rank._store = store
    return made


class StoreThatIsGone:
    """Of a rank that has left."""

    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("broken pipe")

    def set(self, key: str, value: str) -> None:
        raise RuntimeError("broken pipe")


def fail(rank: Peers, error: Exception) -> None:
    with rank.together():
        raise error


def ended_child() -> Place:
    """A process of this machine that has left no note."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    place = replace(Place.of_this_process(1), pid=child.pid)
    child.communicate()
    return place


@pytest.mark.parametrize(
    ("error", "note"),
    [(DataError("a.jpg: truncated"), "rank 0: a.jpg: truncated"), (ValueError("odd"), "rank 0: ValueError: odd")],
)
def test_a_rank_that_fails_says_why_and_the_other_ends_by_that_and_not_by_its_broken_collective(
    ranks: list[Peers], error: Exception, note: str
) -> None:
    with pytest.raises(type(error), match=str(error)):
        fail(ranks[0], error)
    with pytest.raises(PeerFailedError) as caught:
        fail(ranks[1], RuntimeError("connection closed by peer"))
    assert str(caught.value) == note == ranks[1].reason()
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("error", [DataError("truncated"), ValueError("odd")])
def test_who_left_the_note_stays_until_others_have_looked_and_who_did_not_leaves_at_once(
    ranks: list[Peers], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(ranks[0], "_wait_for_reason", lambda: None)
    monkeypatch.setattr(peers.time, "sleep", slept.append)
    with pytest.raises(type(error)):
        fail(ranks[0], error)
    assert slept == [0.3]
    ranks[1]._store = StoreThatIsGone()
    monkeypatch.setattr(ranks[1], "_wait_for_reason", lambda: None)
    with pytest.raises(type(error)):
        fail(ranks[1], error)
    assert slept == [0.3]


def test_what_a_peers_failure_raises_is_no_failure_of_this_rank(ranks: list[Peers]) -> None:
    with pytest.raises(PeerFailedError):
        fail(ranks[0], PeerFailedError("rank 1: truncated"))
    assert not ranks[0]._store.check([peers._KEY])


def test_the_first_note_that_was_seen_stays(ranks: list[Peers]) -> None:
    assert ranks[0].announce("first")
    with ranks[1].together():
        while ranks[1].reason() is None:
            time.sleep(0.01)
        assert not ranks[1].announce("second")
    assert ranks[0]._store.get(peers._KEY) == b"rank 0: first"


def test_nobody_looks_any_more_once_there_is_a_note_or_the_rank_has_ended(ranks: list[Peers]) -> None:
    with ranks[0].together():
        assert ranks[0]._looker.is_alive()
        ranks[0].announce("why")
        ranks[0]._looker.join(20)
        assert not ranks[0]._looker.is_alive() and ranks[0].reason() == "rank 0: why"
    other = Peers()
    other._store = torch_dist.HashStore()
    with other.together():
        pass
    assert "peers" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_where_the_store_is_gone_all_else_goes_on(ranks: list[Peers]) -> None:
    lone = ranks[0]
    lone._store = StoreThatIsGone()
    with lone.together():
        lone._looker.join(20)
        assert lone.reason() is None and not lone.announce("why")


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_of_this_node_that_left_without_a_note_is_named_and_logged_where_nobody_prints_it(
    ranks: list[Peers], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rank: int
) -> None:
    monkeypatch.setattr(dist, "rank", lambda: rank)
    monkeypatch.setattr(logging.getLogger("dmt_ds"), "propagate", True)
    gone = ended_child()
    ranks[0].places = [ranks[0].here, gone]
    with pytest.raises(PeerFailedError, match=rf"^rank 1 \(pid {gone.pid}\) died without a message: ") as caught:
        fail(ranks[0], RuntimeError("connection closed by peer"))
    assert caplog.messages == ([] if rank == 0 else [f"rank {rank}: {caught.value}"])


def test_what_no_lost_peer_can_have_caused_is_this_ranks_own(ranks: list[Peers]) -> None:
    ranks[0].places = [ranks[0].here, ended_child()]
    with pytest.raises(ValueError, match="odd"):
        fail(ranks[0], ValueError("odd"))
    ranks[1].places = [ranks[1].here]
    ranks[1]._store = torch_dist.HashStore()
    with pytest.raises(RuntimeError, match="own"):
        fail(ranks[1], RuntimeError("own"))
    assert ranks[1]._store.get(peers._KEY) == b"rank 0: RuntimeError: own"

"""The shipper's patience, shown on a store that is a plain list and answers only when told to."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmt_ds.tracking import shipper as shipper_module
from dmt_ds.tracking.journal import Record
from dmt_ds.tracking.shipper import ItemDoubted, ItemRefused, Shipper, StoreAway
from dmt_ds.tracking.spool import Spool


class ListStore:
    """A store of one run."""

    run_id = "run"

    def __init__(self) -> None:
        self.answers = True
        self.refused: set[str] = set()
        self.points: list[Record] = []
        self.num_lines: list[int] = []  # of each sending that was taken
        self.records: list[Record] = []
        self.bugs = 0
        self.doubted: dict[int, int] = {}  # step -> times that it is not taken
        self.at_doubted_tags: Callable[[], None] | None = None  # no tags are taken then

    def log_points(self, points: list[Record]) -> None:
        self._check()
        for point in points:
            if left := self.doubted.get(point["step"], 0):
                self.doubted[point["step"]] = left - 1
                raise ItemDoubted(f"not step {point['step']}")
        self.points += points
        self.num_lines.append(len(points))

    def apply(self, record: Record) -> None:
        self._check()
        if record["kind"] in self.refused:
            raise ItemRefused(f"no {record['kind']} here")
        if record["kind"] == "tags" and self.at_doubted_tags is not None:
            self.at_doubted_tags()
            raise ItemDoubted("not these tags")
        self.records.append(record)

    def _check(self) -> None:
        if self.bugs:
            self.bugs -= 1
            raise KeyError("a bug")
        if not self.answers:
            raise StoreAway("no answer")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path, "name")
    yield spool
    spool.close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_POLL_SECONDS", "_FIRST_DELAY_SECONDS", "_LONGEST_DELAY_SECONDS", "_FINISHING_SECONDS"):
        monkeypatch.setattr(shipper_module, name, 0.02)


def started(spool: Spool, store: ListStore) -> Shipper:
    shipper = Shipper(spool, lambda: store, "here")
    shipper.start()
    return shipper


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_put_in_arrives_in_order(spool: Spool) -> None:
    store = ListStore()
    shipper = started(spool, store)
    for step in range(500):
        spool.metrics.append({"step": step})
    spool.put("tags", tags={"a": "b"})
    spool.put("status", status="FINISHED")
    assert shipper.finish(10)
    assert [point["step"] for point in store.points] == list(range(500))
    assert [record["kind"] for record in store.records] == ["begin", "tags", "status"]


def test_an_outage_is_said_once_and_loses_nothing(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = ListStore()
    store.answers = False
    shipper = started(spool, store)
    for step in range(50):
        spool.metrics.append({"step": step})
        time.sleep(0.01)
    assert store.points == []
    store.answers = True
    wait_until(lambda: len(store.points) == 50)
    assert shipper.finish(10)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "MLflow at here: no answer; points wait in" in caplog.text


def test_finish_waits_no_longer_than_told_and_the_next_start_sends_the_rest(spool: Spool) -> None:
    store = ListStore()
    store.answers = False
    shipper = started(spool, store)
    spool.metrics.append({"step": 1})
    start = time.monotonic()
    assert not shipper.finish(0.3)
    assert time.monotonic() - start < 1
    assert not spool.is_empty()
    shipper.join(5)
    store.answers = True
    assert started(spool, store).finish(10)
    assert store.points == [{"step": 1}]


def test_an_item_that_is_refused_holds_up_nothing(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    store = ListStore()
    store.refused = {"artifact"}
    spool.put("artifact", path="x")
    spool.put("status", status="FAILED")
    assert started(spool, store).finish(10)
    assert [record["kind"] for record in store.records] == ["begin", "status"]
    assert "not recorded: no artifact here" in caplog.text


def test_a_point_that_a_store_in_trouble_does_not_take_is_sent_again(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = ListStore()
    store.doubted = {3: 5}
    for step in range(10):
        spool.metrics.append({"step": step})
    assert started(spool, store).finish(10)
    assert [point["step"] for point in store.points] == list(range(10))
    assert "none is lost" in caplog.text


def test_a_point_that_is_never_taken_is_given_up_alone_and_that_is_said(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shipper_module, "_DOUBTED_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    store = ListStore()
    store.doubted = {3: 10**6}
    for step in range(10):
        spool.metrics.append({"step": step})
    assert started(spool, store).finish(10)
    assert [point["step"] for point in store.points] == [step for step in range(10) if step != 3]
    assert "not recorded: not step 3" in caplog.text
    assert "1 items were refused" in caplog.text and "none is lost" not in caplog.text


def test_a_record_that_is_never_taken_is_given_up_also_while_points_are_taken(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shipper_module, "_DOUBTED_SECONDS", 0.1)
    store = ListStore()
    store.at_doubted_tags = lambda: spool.metrics.append({"step": 1})  # so that each round takes a point before it
    spool.put("tags", tags={"a": "b"})
    spool.put("status", status="FINISHED")
    assert started(spool, store).finish(10)
    assert [record["kind"] for record in store.records] == ["begin", "status"]
    assert caplog.text.count("not recorded: not these tags") == 1 and len(store.points) > 1


def test_only_lines_that_were_sent_with_a_bad_one_are_sent_one_by_one(spool: Spool) -> None:
    store = ListStore()
    store.doubted = {3: 1}
    for step in range(500):
        spool.metrics.append({"step": step})
    assert started(spool, store).finish(10)
    assert [point["step"] for point in store.points] == list(range(500))
    assert store.num_lines == [1] * 200 + [200, 100]


def test_a_bug_in_the_thread_costs_neither_points_nor_training(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    store = ListStore()
    store.bugs = 2
    caplog.set_level(logging.INFO)
    spool.metrics.append({"step": 1})
    assert started(spool, store).finish(10)
    assert store.points == [{"step": 1}]
    assert "unexpected KeyError" in caplog.text

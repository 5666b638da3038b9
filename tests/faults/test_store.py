"""A tracking server that answers 500, hangs, or takes points without a word; an SQLite file that another one holds."""

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from dmt_ds.engine.ranks.peers import Peers
from dmt_ds.engine.ranks.stopping import Watchdog
from dmt_ds.tracking import mlflow_opening, mlflow_store
from dmt_ds.tracking.mlflow_errors import translated
from dmt_ds.tracking.mlflow_look import look_at_store
from dmt_ds.tracking.mlflow_opening import import_mlflow
from dmt_ds.tracking.mlflow_tracker import MlflowTracker
from dmt_ds.tracking.shipper import ItemDoubted, ItemRefused, StoreAway
from dmt_ds.tracking.spool import Spool
from dmt_ds.tracking.store_uri import store_uri
from tests.tracking.stores import FORKSERVER, Server, curve, make_store, mlflow_client, run_of, settings, wait_until

PASSWORD = "correct-horse-battery"


class Unreliable:
    """Stands between a run and a real server; `mood` says what becomes of each request."""

    def __init__(self, target: int) -> None:
        self.mood = "well"
        self.moods: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Nothing."""

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.moods.append(mood := outer.mood)
                if mood == "hangs":
                    time.sleep(4)
                if mood in ("hangs", "answers 500"):
                    self.send_error(500)
                    return
                is_batch = self.path.endswith("log-batch")
                if is_batch and mood == "answers 413 to a batch":
                    self.send_error(413)
                    return
                if mood == "answers 400" or (is_batch and mood == "answers 400 to a batch"):
                    self.reply(400, "application/json", b'{"error_code": "BAD_REQUEST", "message": "no connection"}')
                    return
                kept = {name: self.headers[name] for name in ("Content-Type", "Authorization") if name in self.headers}
                upstream = HTTPConnection("127.0.0.1", target, timeout=60)
                upstream.request(self.command, self.path, body, kept)
                reply = upstream.getresponse()
                content = reply.read()
                if mood == "takes and is silent":  # what was sent has arrived, and nobody is told
                    self.close_connection = True
                    return
                self.reply(reply.status, reply.headers.get("Content-Type", "application/json"), content)

            def reply(self, status: int, kind: str, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("first", ["answers 500", "hangs", "takes and is silent"])
def test_every_point_arrives_once_whatever_the_server_does(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    between = Unreliable(server.port)
    between.mood = first  # from the very first request: the run itself may be made without an answer
    uri = f"http://me:{PASSWORD}@{between.address}"
    tracker = MlflowTracker(settings(uri, experiment=first), tmp_path / "run", "run", None)
    longest, step = 0.0, 0
    for mood in (first, "well", "takes and is silent", "well", first, "well"):
        between.mood, asked = mood, len(between.moods)
        for _ in range(20):
            start = time.perf_counter()
            tracker.log_metrics({"train/loss": 1 / (1 + step)}, step)
            longest, step = max(longest, time.perf_counter() - start), step + 1
        wait_until(lambda asked=asked: len(between.moods) > asked)  # the shipper has met this mood
    tracker.finish("FINISHED")
    between.close()
    client = mlflow_client(server.uri)
    experiment = client.get_experiment_by_name(first)
    (run,) = client.search_runs([experiment.experiment_id])
    assert curve(server.uri, run.info.run_id) == [(step, 1 / (1 + step)) for step in range(120)]
    assert run_of(server.uri, tracker).info.status == "FINISHED"
    assert longest < 0.5  # training never waits for it
    kept = [path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(PASSWORD in text for text in [*kept, str(run.to_dictionary())])


def test_what_a_database_in_trouble_refuses_is_not_taken_for_bad(server: Server, tmp_path: Path) -> None:
    """MLflow answers 400 BAD_REQUEST where its connections are used up or broken."""
    between = Unreliable(server.port)
    run = mlflow_store.open_run(store_uri(f"http://{between.address}", tmp_path, {}), "trouble", Spool(tmp_path, "run"))
    (tmp_path / "a.txt").write_text("a")
    points = [{"step": 1, "time_ms": 1, "metrics": {"a": 1.0, "b": 2.0}, "again": True}]
    tags, file = {"kind": "tags", "tags": {"a": "b"}}, {"kind": "artifact", "path": "a.txt"}

    def refusal(mood: str, send: Callable[[], None]) -> BaseException:
        between.mood = mood
        with pytest.raises((StoreAway, ItemRefused)) as caught:
            send()
        return caught.value

    for send in (partial(run.log_points, points), partial(run.apply, tags), partial(run.apply, file)):
        assert type(refusal("answers 400", send)) is StoreAway
    for send in (partial(run.log_points, points), partial(run.apply, tags)):
        assert type(refusal("answers 400 to a batch", send)) is ItemDoubted
    too_large = refusal("answers 413 to a batch", partial(run.log_points, points))
    assert type(too_large) is ItemRefused and re.match(r"metric a at step 1: .* 413 .*; metric b at", str(too_large))
    between.close()


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process's view: the whole file is held by a writer that does not end."""
    writer = sqlite3.connect(database, timeout=30, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        writer.execute("ROLLBACK")
        writer.close()


def test_every_point_arrives_once_though_another_writer_holds_the_file(empty_database: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    uri = f"sqlite:///{database}"
    tracker = MlflowTracker(settings(uri), tmp_path / "run", "run", None)
    tracker.log_metrics({"train/loss": 1.0}, 0)
    wait_until(lambda: tracker.run_id is not None and len(curve(uri, tracker.run_id)) == 1)
    longest = 0.0
    with locked(database):
        for step in range(1, 101):
            start = time.perf_counter()
            tracker.log_metrics({"train/loss": 1 / (1 + step)}, step)
            longest = max(longest, time.perf_counter() - start)
        time.sleep(8)  # SQLite itself waits for 5 s
    tracker.finish("FINISHED")
    assert curve(uri, tracker.run_id) == [(step, 1 / (1 + step)) for step in range(101)]
    assert longest < 0.5


def fail_with_a_peer(uri: str, folder: str, begun: Event, go: Event) -> None:
    """Rank 0 as a failure of its own has it close the record, when it learns that another rank has failed too."""

    class Told(Peers):
        def reason(self) -> str:
            return "rank 1: data/x.jpg: truncated"

    tracker = MlflowTracker(settings(uri), Path(folder), "run", None)
    wait_until(lambda: tracker.run_id is not None)
    begun.set()
    go.wait(60)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    watchdog = Watchdog(60, 0, Told())
    watchdog.last_words, watchdog.last_words_seconds = lambda reason: tracker.finish("FAILED"), 30
    watchdog.start()
    tracker.finish("FAILED")
    time.sleep(60)


def test_a_peers_failure_does_not_cut_off_what_rank_0_still_sends(empty_database: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    uri, begun, go = f"sqlite:///{database}", FORKSERVER.Event(), FORKSERVER.Event()
    rank = FORKSERVER.Process(target=fail_with_a_peer, args=(uri, str(tmp_path / "run"), begun, go))
    rank.start()
    assert begun.wait(60)
    with locked(database):
        go.set()
        time.sleep(6)
    rank.join(60)
    run_id = (tmp_path / "run" / "tracking" / "mlflow_run_id").read_text().strip()
    assert (rank.exitcode, run_of(uri, run_id).info.status, curve(uri, run_id)) == (1, "FAILED", [(1, 1.0)])


def test_a_database_that_fails_is_one_line_and_no_page_of_traceback(
    empty_database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    store = store_uri(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, {})
    import_mlflow(store)
    client, _ = mlflow_store.open_store(store, "Default")
    with sqlite3.connect(store.database) as writer:
        writer.execute("ALTER TABLE runs RENAME TO gone")
    with pytest.raises(StoreAway, match="no such table: runs"), translated():
        client.get_run("x")
    assert capsys.readouterr().err == ""


def test_a_kill_while_the_first_run_makes_the_tables_leaves_a_store_that_works(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    uri = f"sqlite:///{database}"
    for wait in (0.1, 0.4):
        maker = FORKSERVER.Process(target=make_store, args=(uri,))
        maker.start()
        wait_until(lambda: (tmp_path / ".mlflow.db.part").exists())
        time.sleep(wait)
        maker.kill()
        maker.join()
        assert not database.exists()
    make_store(uri)
    assert "answers" in look_at_store(settings(uri), tmp_path / "run")[0]
    assert not (tmp_path / ".mlflow.db.part").exists()


@pytest.mark.parametrize(
    ("before", "meanwhile", "is_ours"),
    [(None, None, True), (None, "", False), (None, "theirs", False), ("", None, True), ("", "theirs", False)],
)
def test_a_store_that_somebody_else_begins_meanwhile_is_left_to_them(
    tmp_path: Path, before: str | None, meanwhile: str | None, is_ours: bool
) -> None:
    unfinished, database = tmp_path / ".mlflow.db.part", tmp_path / "mlflow.db"
    unfinished.write_text("ours")
    if (then := before if meanwhile is None else meanwhile) is not None:
        database.write_text(then)
    mlflow_opening._put_in_place(unfinished, database, was_empty=before is not None)
    assert database.read_text() == ("ours" if is_ours else meanwhile)
    assert not unfinished.exists()

"""MLflow imported, and a store opened, by one at a time; a new SQLite store's tables; knows no run."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from dmt_ds.tracking.journal import FileLock
from dmt_ds.tracking.store_uri import StoreUri

_OPENING = threading.Lock()
_ENVIRONMENT = {
    "HTTP_REQUEST_MAX_RETRIES": "0",
    "HTTP_REQUEST_TIMEOUT": "20",
    "DISABLE_TELEMETRY": "true",
    "ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def import_mlflow(store: StoreUri) -> None:
    """Import all that is used of MLflow (1 to 3 s). Call it where no other thread imports.

    Two threads that import large packages at once can see each other's half-made modules.
    """
    # A retry belongs to the spool, which can wait for days; the user's own settings win.
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(f"MLFLOW_{name}", value)
    import mlflow.system_metrics.system_metrics_monitor

    if store.artifact_root is not None:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Of a file that is locked it prints a page of traceback at each try; what it raises is told once, in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@contextmanager
def opening(store: StoreUri) -> Iterator[None]:
    """One at a time: two first users of an SQLite file that both make its tables would leave it broken for good."""
    lock = FileLock(Path(f"{store.database}.lock")) if store.database else nullcontext()
    with _OPENING, lock:
        if store.database is not None and not (store.database.exists() and store.database.stat().st_size):
            _make_database(store.uri, store.database)
        yield


def _make_database(uri: str, database: Path) -> None:
    """The tables of a new store, whole or not at all: MLflow goes on with none that a kill has left half made."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    unfinished = database.with_name(f".{database.name}.part")
    unfinished.unlink(missing_ok=True)
    was_empty = database.exists()
    store = SqlAlchemyStore(uri.replace(str(database), str(unfinished)), DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()
    _put_in_place(unfinished, database, was_empty)


def _put_in_place(unfinished: Path, database: Path, was_empty: bool) -> None:
    """Unless somebody else, a server maybe, began the file meanwhile: theirs stays, empty as it may still be."""
    if was_empty and database.stat().st_size == 0:  # for as long as making the tables took: nobody is at work on it
        os.replace(unfinished, database)
        return
    try:
        os.link(unfinished, database)
    except OSError:  # it is there, or the file system has no links
        if not database.exists():
            os.replace(unfinished, database)
    unfinished.unlink(missing_ok=True)

"""The tables of a new SQLite store, whole or not at all; knows no run."""

import os
from pathlib import Path


def make_database(uri: str, database: Path) -> None:
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

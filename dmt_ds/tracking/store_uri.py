"""Where a run's tracking store is, worked out from settings alone; imports no MLflow and opens nothing."""

import importlib.metadata
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dmt_ds.errors import TrackingError
from dmt_ds.redact import masked
from dmt_ds.run_files import CLAIM_FILE

_SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_OF_SQLITE = (".db", ".sqlite", ".sqlite3")
"""How names of SQLite files end."""


@dataclass(frozen=True)
class StoreUri:
    """Where runs are kept.

    Attributes:
        uri: as MLflow takes it, secrets included; never to be logged.
        database: file of an SQLite store, else None.
        artifact_root: folder for the files of an experiment that is made new; None leaves it to the server.
    """

    uri: str
    database: Path | None
    artifact_root: Path | None

    def __str__(self) -> str:
        return masked(self.uri)


def store_uri(uri: str | None, output_dir: Path, environ: Mapping[str, str], makes_folder: bool = True) -> StoreUri:
    """The store of a run: `uri`, else MLFLOW_TRACKING_URI, else an SQLite file beside the run folders.

    Args:
        uri: as the recipe has it.
        output_dir: folder of the run.
        environ: of this process.
        makes_folder: make the folder of an SQLite file; else only see whether that could be done.

    Raises:
        TrackingError: MLflow has no such store, or the SQLite file can't be used.
    """
    beside = output_dir.resolve().parent
    if (beside / CLAIM_FILE).is_file():  # a family's member: the store is where that of a run alone would be
        beside = beside.parent
    setting = "MLFLOW_TRACKING_URI" if not uri and environ.get("MLFLOW_TRACKING_URI") else "tracking.uri"
    uri = uri or environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside / 'mlflow.db'}"
    scheme, separator, rest = uri.partition(":")
    scheme = scheme.partition("+")[0].lower()
    if not separator or scheme == "file":
        folder = Path(os.path.abspath(rest.removeprefix("//") if separator else uri))
        raise TrackingError(
            f"{setting} {masked(uri)}: MLflow no longer keeps runs in plain folders; "
            f"use sqlite:///{folder if folder.suffix in _OF_SQLITE else folder / 'mlflow.db'}"
        )
    if scheme == "sqlite":
        return _sqlite(uri, setting, makes_folder)
    if scheme in _DATABASES:
        return StoreUri(uri, None, beside / "mlartifacts")
    if scheme in _SERVERS or scheme in _plugin_schemes():
        return StoreUri(uri, None, None)
    raise TrackingError(
        f"{setting} {masked(uri)}: no store has the scheme '{scheme}'; "
        "use sqlite:////absolute/mlflow.db, http://host:5000 or postgresql://..."
    )


def named_store(text: str, must_exist: bool) -> StoreUri:
    """The store that a URI, or an SQLite file, names.

    Args:
        text: URI, or path of a file; one that is still to be made ends as names of SQLite files do.
        must_exist: a file that is not there is an error.

    Raises:
        TrackingError: MLflow has no such store, or the file is missing.
    """
    is_new = not must_exist and ":" not in text and Path(text).suffix in _OF_SQLITE and not Path(text).exists()
    if Path(text).is_file() or is_new:
        text = f"sqlite:///{Path(text).resolve()}"
    prefix, _, database = text.partition(":///")
    if must_exist and prefix.startswith("sqlite") and not Path(database).is_file():
        raise TrackingError(f"{text}: there is no such file; name a store that has runs")
    if must_exist and ":" not in text:
        raise TrackingError(f"{text}: there is no such folder or SQLite file; name one, or the URI of a store")
    try:
        return store_uri(text, Path.cwd() / "run", {})
    except TrackingError as error:
        raise TrackingError(str(error).removeprefix("tracking.uri ")) from error


def _sqlite(uri: str, setting: str, makes_folder: bool) -> StoreUri:
    prefix, _, name = uri.partition(":///")
    if not name or name.startswith(":memory:"):
        raise TrackingError(f"{setting} {uri}: would be lost with the process; use sqlite:////absolute/mlflow.db")
    database = Path(os.path.abspath(name))
    try:
        if makes_folder:
            database.parent.mkdir(parents=True, exist_ok=True)
        else:
            tempfile.TemporaryFile(dir=next(path for path in database.parents if path.exists())).close()
        header = _first_bytes(database)
    except OSError as error:
        raise TrackingError(f"{setting} {uri}: {error.strerror}: set {setting} to a file of yours") from error
    if header and header != b"SQLite format 3\0":
        raise TrackingError(f"{setting} {uri}: {database} is not an SQLite file; move it away or name another one")
    if not os.access(database if header else database.parent, os.W_OK) and (header or database.parent.exists()):
        raise TrackingError(f"{setting} {uri}: {database} can't be written; set {setting} to a file of yours")
    return StoreUri(f"{prefix}:///{database}", database, database.parent / "mlartifacts")


def _first_bytes(path: Path) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(16)


def _plugin_schemes() -> set[str]:
    return {point.name for point in importlib.metadata.entry_points(group="mlflow.tracking_store")}

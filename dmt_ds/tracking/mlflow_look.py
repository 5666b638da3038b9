"""How a run's store stands before the run starts: what is there is asked, what is not is left to the start."""

import os
import sqlite3
from pathlib import Path

from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.errors import TrackingError
from dmt_ds.tracking.mlflow_errors import translated
from dmt_ds.tracking.mlflow_opening import import_mlflow
from dmt_ds.tracking.shipper import ItemRefused, StoreAway
from dmt_ds.tracking.store_uri import StoreUri, store_uri


def look_at_store(section: TrackingConfig, output_dir: Path) -> tuple[str, bool]:
    """How the store stands, in a line, and whether it answers or needs nothing but its first run.

    A file that is locked, and a server that is away, are no reason against a start: points are kept and sent later.

    Raises:
        TrackingError: it can't be used at all, or refuses us.
    """
    store = store_uri(section.uri, output_dir, os.environ, makes_folder=False)
    if store.database is not None and _is_new(store.database):
        return f"{store} does not exist yet; the run will create it", True
    import_mlflow(store)
    try:
        return f"{store} answers; experiment {section.experiment} {_state(store, section.experiment)}", True
    except ItemRefused as refusal:
        raise TrackingError(f"tracking.uri {store}, experiment {section.experiment}: {refusal}") from refusal
    except StoreAway as away:
        if store.database is not None and "locked" not in str(away):
            raise TrackingError(f"tracking.uri {store}: {away}") from away
        return f"{store} can't be reached properly now ({away}); points will be kept and sent later", False


def _is_new(database: Path) -> bool:
    """Whether MLflow would make its tables there."""
    if not database.exists() or not database.stat().st_size:
        return True
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
        try:
            return not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return False  # what is wrong with it MLflow will say


def _state(store: StoreUri, experiment: str) -> str:
    from mlflow import MlflowClient

    with translated():
        found = MlflowClient(tracking_uri=store.uri).get_experiment_by_name(experiment)
    if found is None:
        return "will be created by the run"
    if found.lifecycle_stage != "active":
        remedy = f"`mlflow experiments restore -x {found.experiment_id}`, or name another in tracking.experiment"
        raise TrackingError(f"tracking.uri {store}: experiment {experiment} was deleted; {remedy}")
    return "is there"

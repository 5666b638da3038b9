"""A run's exported model in MLflow's registry: its files with the run, a version that points at them, an alias."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.errors import TrackingError
from dmt_ds.run_files import RUN_ID_FILE
from dmt_ds.tracking.mlflow_opening import import_mlflow
from dmt_ds.tracking.mlflow_source import answering, pages
from dmt_ds.tracking.store_uri import store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NAME = re.compile(r"[\w. -]{1,200}")
_ALIAS = re.compile(r"(?!v\d+$)[A-Za-z][\w-]{0,200}")


def check_names(name: str, alias: str | None) -> None:
    """Names that every MLflow store takes.

    Raises:
        TrackingError: one of them is not.
    """
    if not _NAME.fullmatch(name):
        raise TrackingError(f"--register {name!r}: a model's name has letters, digits, '.', '_', '-' and spaces only")
    if alias is not None and (not _ALIAS.fullmatch(alias) or alias == "latest"):
        raise TrackingError(f"--alias {alias!r}: letters, digits, '_' and '-' only, and neither 'latest' nor 'v1'")


def run_in_store(output_dir: Path) -> str:
    """The store's name of a folder's run.

    Raises:
        TrackingError: it has none.
    """
    try:
        return (output_dir / RUN_ID_FILE).read_text().strip()
    except OSError:
        raise TrackingError(
            f"{output_dir}: MLflow knows no such run (tracking.enabled=false, or its store never answered); a "
            "registered model belongs to a run"
        ) from None


def register(
    section: TrackingConfig, output_dir: Path, folders: Mapping[str, Path], name: str, alias: str | None
) -> str:
    """Log the folders to the run, and make a version of the registered model that points at them.

    The same files registered again are the version that they are; only the alias moves.

    Args:
        section: which store.
        output_dir: folder of the run.
        folders: name in the version -> what it holds.
        name: of the registered model; made where it is missing.
        alias: taken from the version that has it, if one does.

    Returns:
        URI of the version, such as `models:/NAME/3`.

    Raises:
        TrackingError: the store does not answer or refuses, or does not know the run.
    """
    check_names(name, alias)
    run_id = run_in_store(output_dir)
    store = store_uri(section.uri, output_dir, os.environ)
    import_mlflow(store)
    from mlflow import MlflowClient

    place = f"exports/{_digest(folders)}"
    with answering(store):
        client = MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)
        version = _known_version(client, name, f"runs:/{run_id}/{place}")
        if version is None:
            for folder_name, folder in folders.items():
                client.log_artifacts(run_id, str(folder), f"{place}/{folder_name}")
            version = _new_version(client, name, f"runs:/{run_id}/{place}", run_id)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version)
    return f"models:/{name}/{version}"


def _known_version(client: "MlflowClient", name: str, source: str) -> str | None:
    versions = pages(client.search_model_versions, filter_string=f"name='{name}'")
    return next((str(version.version) for version in versions if version.source == source), None)


def _new_version(client: "MlflowClient", name: str, source: str, run_id: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.create_model_version(name, source, run_id).version)


def _digest(folders: Mapping[str, Path]) -> str:
    """12 hex digits of all files, their names and contents."""
    digest = hashlib.sha256()
    for name, folder in sorted(folders.items()):
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{name}/{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]

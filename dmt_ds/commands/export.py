"""`dmt-ds export`: a run's model in the forms that other programs load, each with its card; puts the parts together."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dmt_ds.commands.model_card import model_card
from dmt_ds.commands.model_source import ModelSource, find_model
from dmt_ds.commands.run_record import RunRecord, read_record
from dmt_ds.errors import ExportError, TrackingError
from dmt_ds.models.classifier_folder import CLASSES_FILE
from dmt_ds.models.forms import write_form
from dmt_ds.models.graph_files import check_onnx_packages
from dmt_ds.models.portable import PortableModel, read_portable
from dmt_ds.tracking.mlflow_registry import check_names, register, run_in_store

logger = logging.getLogger(__name__)

EXPORT_FOLDER = "export"
"""In a run's folder, where nothing else is named."""
CARD_FILE = "README.md"


class Exported(NamedTuple):
    """One form that was written; `str` gives what the command line prints."""

    form: str
    folder: Path
    num_bytes: int
    difference: float
    """Largest one between its answer and the trainer's own."""

    def __str__(self) -> str:
        """A line."""
        size = f"{self.num_bytes / 2**20:.1f} MiB"
        agreement = f"to {self.difference:.1e}" if self.difference else "exactly"
        return f"{self.folder}: {size}, read back it gives the trainer's answers {agreement}"


class Registration(NamedTuple):
    """How a model is to be called in MLflow's registry."""

    name: str
    alias: str | None = None


def run(
    source: str, forms: Sequence[str], out: Path | None, registration: Registration | None = None
) -> list[Exported | str]:
    """Write a model, a folder a form; register them, as one version.

    Args:
        source: run, checkpoint of a run, or folder with a model.
        forms: names in `models.forms.FORMS`.
        out: each form gets its folder in this one; None takes `export` in the run's folder.
        registration: where to register, in the store of the run.

    Returns:
        What was written, and the registered version's URI.

    Raises:
        ExportError: there is no such model, a folder is there already, or a form can't express the model.
        WeightsError: the model's files are damaged.
        TrackingError: the registry does not answer or refuses, or the model belongs to no run that MLflow knows.
    """
    found = find_model(source)
    if registration is not None:
        _check_registration(found, registration)
    target = (found.run or found.folder) / EXPORT_FOLDER if out is None else out
    forms = list(dict.fromkeys(forms))
    for form in forms:
        _check_free(target / form)
    if "onnx" in forms:
        check_onnx_packages()
    model, record = open_model(found)
    written = [_write(form, model, record, target / form) for form in forms]
    if registration is None:
        return [*written]
    assert found.run is not None and record.config is not None
    folders = {exported.form: exported.folder for exported in written}
    return [*written, register(record.config.tracking, found.run, folders, *registration)]


def _check_registration(found: ModelSource, registration: Registration) -> None:
    """Before anything is written."""
    check_names(*registration)
    if found.run is None:
        raise TrackingError(f"{found.folder}: lies in no run's folder; a registered model belongs to a run")
    run_in_store(found.run)


def open_model(found: ModelSource) -> tuple[PortableModel, RunRecord]:
    """The model in memory, and what is known of it.

    Raises:
        WeightsError: its files are damaged.
        ConfigError: the run's settings can't be read by this version.
    """
    model = read_portable(found.folder)
    record = read_record(found.run, model.provenance, found.folder.name)
    return dataclasses.replace(model, provenance=record.provenance), record


def _check_free(folder: Path) -> None:
    if folder.exists():
        raise ExportError(f"{folder}: is there already; remove it, or take another folder by -o")


def _write(form: str, model: PortableModel, record: RunRecord, folder: Path) -> Exported:
    """All of a form's files under a hidden name, then the rename: a folder is whole or not there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        difference = write_form(form, model, partial)
        if model.class_names:
            (partial / CLASSES_FILE).write_text(json.dumps(list(model.class_names), indent=1) + "\n")
        (partial / CARD_FILE).write_text(model_card(model, form, record, difference), encoding="utf-8")
        partial.rename(folder)
    except OSError as error:
        raise ExportError(f"{folder}: can't be written ({error.strerror}); check the folder and the disk") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Exported(form, folder, num_bytes, difference)

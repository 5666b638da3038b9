"""`dmt-ds export`: a run's model in the forms that other programs load, each with its card; puts the parts together."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dmt_ds.commands.model_card import model_card
from dmt_ds.commands.model_source import ModelSource, find_model, find_own_form
from dmt_ds.commands.training.run_record import RunRecord, read_record
from dmt_ds.errors import ExportError, TrackingError
from dmt_ds.models.classifier_folder import CLASSES_FILE
from dmt_ds.models.forms import FORMS, disagreement, write_form
from dmt_ds.models.graph_files import check_onnx_packages
from dmt_ds.models.portable import PortableModel, read_portable
from dmt_ds.models.whole_folder import whole_folder
from dmt_ds.run_files import BACKBONE_FOLDER, DETECTOR_FOLDER, EXPORT_FOLDER, PUBLISHED, SEGMENTER_FOLDER
from dmt_ds.tracking.mlflow_registry import check_names, register, run_in_store
from dmt_ds.wording import first_line

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
_ANOTHER_FOLDER = "remove it, or choose another folder with -o"


class Exported(NamedTuple):
    """One form that was written, or lay there; `str` gives what the command line prints."""

    form: str
    folder: Path
    difference: float
    """Largest one between its answer and the trainer's own."""

    def __str__(self) -> str:
        """A line."""
        num_bytes = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        agreement = f"to {self.difference:.1e}" if self.difference else "exactly"
        return f"{self.folder}: {num_bytes / 2**20:.1f} MiB, read back it gives the trainer's answers {agreement}"


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
        forms: names in `models.forms.FORMS`; none takes those that lie in `out`, to be registered.
        out: each form gets its folder in this one; None takes `export` in the run's folder.
        registration: where to register, in the store of the run; a form that lies there is then taken as it is.

    Returns:
        What was written or lay there, and the registered version's URI.

    Raises:
        ExportError: there is no such model, a folder is there already (to be registered: with another model), a form
            can't express the model, or none can: a segmenter, a detector.
        WeightsError: the model's files are damaged.
        TrackingError: the registry does not answer or refuses, or the model belongs to no run that MLflow knows.
    """
    _refuse_own_forms(source)
    found = find_model(source)
    if registration is not None:
        _check_registration(found, registration)
    target = (found.run or found.folder) / EXPORT_FOLDER if out is None else out
    forms = list(dict.fromkeys(forms)) or _forms_in(target)
    there = [form for form in forms if (target / form).exists()]
    if there and registration is None:
        raise ExportError(f"{target / there[0]}: is there already; {_ANOTHER_FOLDER}")
    if "onnx" in forms:
        check_onnx_packages()
    model, record = open_model(found)
    kept = {form: _read_back(form, model, target / form) for form in there}
    exported = [kept[form] if form in kept else _write(form, model, record, target / form) for form in forms]
    if registration is None:
        return [*exported]
    assert found.run is not None and record.config is not None
    folders = {one.form: one.folder for one in exported}
    return [*exported, register(record.config.tracking, found.run, folders, *registration)]


def _refuse_own_forms(source: str) -> None:
    """What learned pixels or objects has no form but its own, and its encoder must not leave in its name."""
    for name in (SEGMENTER_FOLDER, DETECTOR_FOLDER):
        if (folder := find_own_form(source, name)) is not None:
            raise ExportError(
                f"{source}: its model is a {PUBLISHED[name]}, which no format can hold; name "
                f"{folder.parent / BACKBONE_FOLDER} to export its encoder, or use it with `dmt-ds predict -e {source}`"
            )


def _check_registration(found: ModelSource, registration: Registration) -> None:
    """Before anything is written."""
    check_names(*registration)
    if found.run is None:
        raise TrackingError(f"{found.folder}: is not in a run's folder; a registered model belongs to a run")
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


def _forms_in(folder: Path) -> list[str]:
    forms = [form for form in FORMS if (folder / form).is_dir()]
    if not forms:
        raise ExportError(f"{folder}: no export there that could be registered; name a --format")
    return forms


def _read_back(form: str, model: PortableModel, folder: Path) -> Exported:
    """What an earlier export left, where it is this very model."""
    try:
        difference, allowed = disagreement(form, model, folder)
    except Exception as error:  # of whatever library the form is for
        raise ExportError(
            f"{folder}: is there already, and does not load ({first_line(error)}); {_ANOTHER_FOLDER}"
        ) from error
    if not difference <= allowed:
        raise ExportError(
            f"{folder}: is there already, and holds another model (answers differ by {difference:.1e}, allowed "
            f"{allowed:.1e}); {_ANOTHER_FOLDER}"
        )
    return Exported(form, folder, difference)


def _write(form: str, model: PortableModel, record: RunRecord, folder: Path) -> Exported:
    """All of a form's files, with its card; a folder is whole or not there."""
    try:
        with whole_folder(folder) as partial:
            difference = write_form(form, model, partial)
            if model.class_names:
                (partial / CLASSES_FILE).write_text(json.dumps(list(model.class_names), indent=1) + "\n")
            (partial / CARD_FILE).write_text(model_card(model, form, record, difference), encoding="utf-8")
    except OSError as error:
        raise ExportError(f"{folder}: can't be written ({error.strerror}); check the folder and the disk") from error
    return Exported(form, folder, difference)

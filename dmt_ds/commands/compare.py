"""`dmt-ds compare`: reads runs out of MLflow, says and saves how they compare, and logs that to the parent run."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmt_ds.errors import TrackingError
from dmt_ds.tracking import comparison_pictures as pictures
from dmt_ds.tracking import comparison_text as texts
from dmt_ds.tracking.budget import against_images
from dmt_ds.tracking.comparison import Comparison, compare
from dmt_ds.tracking.mlflow_compare import SUITE_TAG, RecordedStudy, find_run, log_files, read_study
from dmt_ds.tracking.mlflow_parent import PARENT_OF_TAG
from dmt_ds.tracking.store_uri import StoreUri, named_store

logger = logging.getLogger(__name__)

NOWHERE = "none"
"""Value of --log that keeps the files out of the store."""
FOLDER = "compare"
_LOSS = "train/loss"


@dataclass(frozen=True)
class Question:
    """What the command line asks; what is empty has a default.

    Attributes:
        experiment: name of an experiment, or a folder with an mlflow.db in it.
        uri: URI or SQLite file of the store.
        output: folder for what is saved.
        log: id or name of the run that keeps it; `none` for no run.
    """

    experiment: str | None = None
    suite: str | None = None
    uri: str | None = None
    metrics: tuple[str, ...] = ()
    by: str = "variant"
    roles: tuple[str, ...] = ()
    output: Path | None = None
    log: str | None = None

    @property
    def is_of_its_own(self) -> bool:
        """Whether it asks otherwise than a suite's table does, which is kept under the same names."""
        return bool(self.metrics or self.roles or self.output or self.by != Question.by)


def run(question: Question, environ: Mapping[str, str], say: Callable[[str], None]) -> Comparison:
    """Print the table, save it with its pictures, and log both to the run that is to keep them.

    Args:
        question: what to compare.
        environ: where MLFLOW_TRACKING_URI may stand.
        say: takes what is printed.

    Raises:
        TrackingError: no such store, experiment, suite, metric, role or run; or the store doesn't answer.
    """
    folder = _folder_with_store(question)
    try:
        store = named_store(_uri(question, folder, environ), must_exist=True)
        study = read_study(store, None if folder else question.experiment, question.suite)
    except TrackingError as error:
        raise TrackingError(f"{error}{_elsewhere(question, folder)}") from error
    target = _run_to_log_to(question, store, study)
    comparison = compare(study, question.metrics, question.by, question.roles)
    say(texts.terminal_table(comparison, shutil.get_terminal_size((120, 24)).columns))
    output = question.output or (folder / FOLDER if folder else Path(f"compare_{study.name.replace('/', '_')}"))
    files = save(comparison, output)
    say(f"\nSaved in {output}: {', '.join(file.name for file in files)}")
    if target is not None:
        _log(store, *target, files, say)
    return comparison


def save(comparison: Comparison, folder: Path) -> list[Path]:
    """Write table and pictures; the files of an earlier comparison in the folder are replaced.

    Returns:
        compare.md first, then the pictures, then compare.csv and compare.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [path.name for path in draw(comparison, folder)]
    contents = {
        "compare.md": texts.markdown(comparison, drawn),
        "compare.csv": texts.runs_as_csv(comparison),
        "compare.json": texts.as_json(comparison),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    first, *others = contents
    return [folder / name for name in (first, *drawn, *others)]


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Bars of the metrics; curves of those that were measured several times, or of the loss."""
    paths = []
    if any(row.runs for row in (*comparison.rows, *comparison.teachers)):
        paths.append(folder / "bars.png")
        pictures.bars(comparison, paths[-1])
    for metric in comparison.metrics:
        named = curves(comparison, metric)
        if named and metric != _LOSS:
            paths.append(folder / f"curves_{metric.replace('/', '_')}.png")
            pictures.metric_curves(named, metric, paths[-1])
    if not any(path.name.startswith("curves_") for path in paths) and (named := curves(comparison, _LOSS)):
        paths.append(folder / "curves_train_loss.png")
        pictures.loss_curves(named, _LOSS, paths[-1])
    return paths


def curves(comparison: Comparison, metric: str) -> dict[str, list[pictures.Curve]]:
    """Title of a row -> a curve a run that counts, where it was measured at least twice."""
    named: dict[str, list[pictures.Curve]] = {}
    for row in comparison.rows:
        found = [against_images(run.run, metric) for run in row.runs]
        if several := [curve for curve in found if len(curve) > 1]:
            named[row.title] = list(several)
    return named


def _folder_with_store(question: Question) -> Path | None:
    """The experiment's place, where it was named by that: a suite's output folder."""
    if question.experiment is None or question.uri is not None:
        return None
    folder = Path(question.experiment)
    return folder if (folder / "mlflow.db").is_file() else None


def _elsewhere(question: Question, folder: Path | None) -> str:
    """What a question that found nothing may have meant: a suite of that name, whose runs have a store of their own."""
    if folder is not None or question.uri is not None or not (name := question.experiment or question.suite):
        return ""
    place = Path("runs", name)
    return f"; {place} has a store of its own: name {place}" if (place / "mlflow.db").is_file() else ""


def _uri(question: Question, folder: Path | None, environ: Mapping[str, str]) -> str:
    """Where a run that was started here would have gone."""
    if folder is not None:
        return str(folder / "mlflow.db")
    if question.uri or environ.get("MLFLOW_TRACKING_URI"):
        return question.uri or environ["MLFLOW_TRACKING_URI"]
    places = [Path("mlflow.db"), Path("runs/mlflow.db")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise TrackingError(
            f"{Path.cwd()}: no store: MLFLOW_TRACKING_URI is not set, and there is no mlflow.db or runs/mlflow.db; "
            "name a store with --uri, or the folder that has its mlflow.db"
        )
    return str(found)


def _run_to_log_to(question: Question, store: StoreUri, study: RecordedStudy) -> tuple[str, str] | None:
    """Id and name of the run that keeps the files; a parent that is no suite's, but a family's, is not asked.

    What was asked otherwise, or saved elsewhere, leaves the suite's table as it is, unless a run is named for it.
    """
    if question.log == NOWHERE:
        return None
    if question.log is not None:
        return find_run(store, study, question.log), question.log
    if question.is_of_its_own:
        return None
    suites = {run.tags.get(SUITE_TAG) for run in study.runs}
    if study.parent is None or study.parent.tags[PARENT_OF_TAG] not in suites:
        return None
    return study.parent.run_id, study.parent.name


def _log(store: StoreUri, run_id: str, name: str, files: Sequence[Path], say: Callable[[str], None]) -> None:
    """A store that takes no files is no reason to lose the table, which is saved already."""
    try:
        log_files(store, run_id, files, FOLDER)
    except TrackingError as error:
        logger.warning("not saved with run %s: %s", name, error)
        return
    say(f"Saved with run {name} in MLflow, as artifacts in {FOLDER}/")

"""Which store a run goes to, and which can't be one."""

from pathlib import Path

import pytest

from dmt_ds.engine.checkpoints.fence import Fence
from dmt_ds.errors import TrackingError
from dmt_ds.tracking.store_uri import store_uri


def test_the_default_is_one_file_beside_the_run_folders(tmp_path: Path) -> None:
    store = store_uri(None, tmp_path / "runs" / "a", {})
    assert store.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert store.artifact_root == tmp_path / "runs" / "mlartifacts"


def test_a_familys_members_go_to_the_store_of_runs_beside_the_family(tmp_path: Path) -> None:
    family = tmp_path / "runs" / "family"
    (family / "vit_tiny").mkdir(parents=True)
    Fence.claim(family)
    assert store_uri(None, family / "vit_tiny", {}) == store_uri(None, tmp_path / "runs" / "vit_tiny", {})


def test_a_setting_wins_over_the_environment_and_the_environment_over_the_default(tmp_path: Path) -> None:
    environ = {"MLFLOW_TRACKING_URI": "http://there:5000"}
    assert store_uri(None, tmp_path, environ).uri == "http://there:5000"
    assert store_uri("https://here", tmp_path, environ).uri == "https://here"


def test_a_relative_database_stays_where_it_was_when_the_run_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_uri("sqlite:///new/mlflow.db", tmp_path / "run", {}).uri == f"sqlite:///{tmp_path}/new/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("./mlruns", r"plain folders; use sqlite:///.*/mlruns/mlflow\.db"),
        ("runs/all.db", r"plain folders; use sqlite:////.*/runs/all\.db$"),
        ("file:///data/mlruns", r"plain folders; use sqlite:////data/mlruns/mlflow\.db"),
        ("sqlite://", "lost with the process"),
        ("sqlite:///:memory:", "lost with the process"),
        ("ftp://me:secret@host", r"ftp://\*\*\*@host: no store has the scheme 'ftp'"),
    ],
)
def test_what_can_not_be_a_store_is_refused_in_one_line(tmp_path: Path, uri: str, said: str) -> None:
    with pytest.raises(TrackingError, match=said) as error:
        store_uri(uri, tmp_path / "run", {})
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_what_is_wrong_with_the_environments_store_names_the_variable_not_a_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for uri in ("./mlruns", "ftp://host", "sqlite://", f"sqlite:///{tmp_path}/file/mlflow.db"):
        with pytest.raises(TrackingError, match=rf"^MLFLOW_TRACKING_URI {uri}: ") as error:
            store_uri(None, tmp_path / "run", {"MLFLOW_TRACKING_URI": uri})
        assert "tracking.uri" not in str(error.value)
        with pytest.raises(TrackingError, match=rf"^tracking\.uri {uri}: "):
            store_uri(uri, tmp_path / "run", {"MLFLOW_TRACKING_URI": "http://there:5000"})


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, but a text")
    with pytest.raises(TrackingError, match=r"mlflow\.db is not an SQLite file"):
        store_uri(None, tmp_path / "run", {})

"""Folders, stores and archives from elsewhere that name files outside of themselves, or hold programs."""

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.sources import open_source
from dmt_ds.errors import DataError
from dmt_ds.tracking.mlflow_source import SourceRun
from dmt_ds.tracking.mlflow_sync import _Copy, sync
from dmt_ds.tracking.mlflow_tracker import MlflowTracker
from dmt_ds.tracking.shipper import ItemRefused
from dmt_ds.tracking.store_uri import named_store
from tests.faults.test_checkpoints import Bomb
from tests.tracking.stores import settings


@pytest.fixture
def target(empty_database: Path, tmp_path: Path) -> str:
    (tmp_path / "target").mkdir()
    shutil.copyfile(empty_database, tmp_path / "target" / "mlflow.db")
    return f"sqlite:///{tmp_path / 'target' / 'mlflow.db'}"


def test_a_run_folder_that_names_files_outside_of_itself_gives_none_of_them(target, tmp_path):
    """Whoever copies a colleague's folder into a shared store must not publish files of their own."""
    secret = tmp_path / "secret.txt"
    secret.write_text("correct-horse-battery")
    run = tmp_path / "theirs" / "run"
    tracker = MlflowTracker(settings("http://127.0.0.1:9", drain_seconds=0), run, "run", None)
    (run / "config.yaml").write_text("seed: 1")
    tracker.log_artifact(run / "config.yaml")
    tracker.finish("FINISHED")
    (run / "link.txt").symlink_to(secret)
    (run / "folder").mkdir()
    (run / "folder" / "link.txt").symlink_to(secret)
    with (run / "tracking" / "records.jsonl").open("a") as records:
        for path in ("../../secret.txt", str(secret), "link.txt", "folder", "."):
            records.write(json.dumps({"kind": "artifact", "time_ms": 1, "path": path, "folder": "../../up"}) + "\n")
    before = {path for path in tmp_path.rglob("*") if "target" not in path.parts}
    with pytest.raises(Exception, match="up"):
        list(sync(str(tmp_path / "theirs"), target, []))
    copied = [path for path in (tmp_path / "target").rglob("*") if path.is_file() and path.suffix != ".db"]
    assert not any(b"correct-horse" in path.read_bytes() for path in copied)
    after = {path for path in tmp_path.rglob("*") if "target" not in path.parts}
    assert after - {run / "tracking" / "lock"} == before - {
        run / "tracking" / "lock"
    }  # the tracker's thread may be late


def test_a_store_that_names_files_outside_of_the_run_is_refused(target, tmp_path):
    def nothing() -> list:
        return []

    run = SourceRun(
        ids=("a" * 32,), key=None, experiment="Default", name="evil", start_time=1, end_time=None, status="FINISHED",
        params={}, tags={}, parent=None, datasets=[], read_points=nothing, read_files=lambda: {"../../evil": 3},
        fetch=lambda path, into: Path(into / path),
    )  # fmt: skip
    store = named_store(target, must_exist=True)
    with pytest.raises(ItemRefused, match=r"file \.\./\.\./evil: would leave the folder"):
        _Copy(store, "elsewhere").bring(run)


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    return file.getvalue()


def test_names_in_a_tar_of_images_lead_nowhere_and_what_lies_beside_them_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    mark = tmp_path / "has run"
    weights = io.BytesIO()
    torch.save({"x": Bomb(mark)}, weights)
    (tmp_path / "data").mkdir()
    names = {"../../out/a.jpg": jpeg(), "/tmp/out/b.jpg": jpeg(), "c.jpg": jpeg()}
    tar_of(tmp_path / "data" / "train-0.tar", names)
    section = DataConfig(source="webdataset", path=str(tmp_path / "data"), image_column="jpg", label_column=None)
    source = open_source(section, "train")
    assert [tuple(source.read(row).shape) for row in range(len(source))] == [(3, 16, 16)] * 3
    assert not (tmp_path.parent / "out").exists() and not os.path.exists("/tmp/out")
    for ending, content in (
        ("pth", weights.getvalue()),
        ("pkl", pickle.dumps(Bomb(mark))),
        ("pyd", pickle.dumps(Bomb(mark))),
    ):
        tar_of(tmp_path / "data" / "train-0.tar", {"a.jpg": jpeg(), f"a.{ending}": content})
        if ending == "pth":
            with pytest.raises(DataError, match=r"train-0\.tar holds a PyTorch file that would run a program"):
                open_source(section, "train")
        else:
            open_source(section, "train").read(0)
        assert not mark.exists()

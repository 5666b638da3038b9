"""`dmt-ds export --register`: what plain MLflow downloads by an alias is what was written, from a file and a server."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dmt_ds.config.load import config_from_yaml
from dmt_ds.tracking.mlflow_tracker import open_tracker
from tests import processes
from tests.commands.finished_run import export, make_run
from tests.models import tiny
from tests.tracking.stores import Server, mlflow_client

DOWNLOAD = """
import sys, mlflow
uri, model, out = sys.argv[1:]
mlflow.set_tracking_uri(uri)
mlflow.artifacts.download_artifacts(model, dst_path=out)
assert not any(name.startswith("dmt_ds") for name in sys.modules)
"""


def tracked_run(folder: Path, uri: str) -> Path:
    """A finished run that the store has."""
    make_run(folder, f"tracking.uri={uri}", "tracking.system_metrics_seconds=0")
    section = config_from_yaml((folder / "config.yaml").read_text()).tracking
    open_tracker(section, folder, folder.name, None, is_main=True).finish("FINISHED")
    return folder


def run_id_of(folder: Path) -> str:
    return (folder / "tracking" / "mlflow_run_id").read_text().strip()


def download(uri: str, model: str, out: Path) -> None:
    out.mkdir()
    command = [sys.executable, "-c", DOWNLOAD, uri, model, str(out)]
    done = subprocess.run(command, cwd=out, env=processes.environment(PYTHONPATH=""), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_registered(folder: Path, uri: str) -> None:
    result = export(folder, "-f", "timm", "-f", "transformers", "--register", "tiny vit", "--alias", "champion")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "models:/tiny vit/1"
    download(uri, "models:/tiny vit@champion", folder / "downloaded")
    for form in ("timm", "transformers"):
        ours, theirs = (load_file(folder / place / form / "model.safetensors") for place in ("export", "downloaded"))
        assert ours.keys() == theirs.keys() and all(bool((ours[key] == theirs[key]).all()) for key in ours)
        assert (folder / "downloaded" / form / "README.md").read_text().startswith("---\n")


def test_an_alias_downloads_the_same_weights_and_the_same_files_are_one_version(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder = tracked_run(tmp_path / "run", uri)
    check_registered(folder, uri)
    again = export(folder, "-f", "timm", "-f", "transformers", "-o", tmp_path / "2", "--register", "tiny vit")
    assert again.output.splitlines()[-1] == "models:/tiny vit/1"
    other = export(folder, "-f", "timm", "-o", tmp_path / "3", "--register", "tiny vit", "--alias", "champion")
    assert other.output.splitlines()[-1] == "models:/tiny vit/2"
    client = mlflow_client(uri)
    assert client.get_model_version_by_alias("tiny vit", "champion").version in (2, "2")
    assert client.get_model_version("tiny vit", "1").run_id == run_id_of(folder)


def test_an_earlier_export_is_registered_as_it_lies_there_again_and_again(tmp_path, empty_database):
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    folder = tracked_run(tmp_path / "run", uri)
    assert export(folder, "-f", "timm").exit_code == 0
    card = folder / "export" / "timm" / "README.md"
    card.write_text(card.read_text() + "By hand.\n")
    for formats in ((), ("-f", "timm")):
        result = export(folder, *formats, "--register", "tiny vit")
        assert result.exit_code == 0, result.output
        lines = result.output.splitlines()
        assert lines[0].startswith(f"{folder / 'export' / 'timm'}: ") and lines[0].endswith("answers exactly")
        assert lines[1:] == ["models:/tiny vit/1"]
    held = Path(mlflow_client(uri).download_artifacts(run_id_of(folder), "exports", str(tmp_path)))
    (version,) = held.iterdir()
    assert (version / "timm" / "README.md").read_text().endswith("By hand.\n")
    assert export(folder, "-f", "torch_export").exit_code == 0
    assert export(folder, "--register", "tiny vit").output.splitlines()[-1] == "models:/tiny vit/2"


@pytest.mark.parametrize(
    ("in_its_place", "reason"),
    [
        (None, "no export there that could be registered; name a --format"),
        ("another model", "is there already, and holds another model (answers differ by"),
        ("another shape", "is there already, and holds another model (answers differ by inf"),
        ("rubbish", "is there already, and does not load ("),
    ],
)
def test_what_lies_there_and_is_not_this_model_is_not_registered(in_its_place, reason, tmp_path):
    folder = make_run(tmp_path / "run", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}")
    (folder / "tracking").mkdir()
    (folder / "tracking" / "mlflow_run_id").write_text("0")
    if in_its_place == "rubbish":
        (folder / "export" / "timm").mkdir(parents=True)
        (folder / "export" / "timm" / "config.json").write_text("{}")
    elif in_its_place is not None:
        width = {"another model": tiny.WIDTH, "another shape": 2 * tiny.WIDTH}[in_its_place]
        other = make_run(tmp_path / "other", f"student.embed_dim={width}", "student.positions=learned")
        assert export(other, "-f", "timm", "-o", folder / "export").exit_code == 0
    result = export(folder, "--register", "tiny vit")
    assert result.exit_code == 2 and reason in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "mlflow.db").exists()


def test_a_servers_registry_gives_the_same_weights(tmp_path):
    server = Server(tmp_path)
    server.start()
    try:
        check_registered(tracked_run(tmp_path / "run", server.uri), server.uri)
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--register", "a/b"), "a model's name has letters"),
        (("--register", "a", "--alias", "v1"), "neither 'latest' nor 'v1'"),
        (("--register", "it's"), "a model's name has letters"),
        (("--register", "a"), "MLflow knows no such run"),
        (("--alias", "a"), "--alias needs --register"),
    ],
)
def test_what_can_not_be_registered_is_said_before_anything_is_written(options, reason, tmp_path):
    make_run(tmp_path / "run", "tracking.enabled=false")
    result = export(tmp_path / "run", "-f", "timm", *options)
    assert result.exit_code == 2 and reason in result.stderr
    assert not (tmp_path / "run" / "export").exists()

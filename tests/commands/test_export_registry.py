"""`dmt-ds export --register`: what plain MLflow downloads by an alias is what was written, from a file and a server."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from dmt_ds.cli import main
from dmt_ds.config.load import config_from_yaml
from dmt_ds.tracking.mlflow_tracker import open_tracker
from tests import processes
from tests.commands.test_export import make_run
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


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def download(uri: str, model: str, out: Path) -> None:
    out.mkdir()
    command = [sys.executable, "-c", DOWNLOAD, uri, model, str(out)]
    done = subprocess.run(command, cwd=out, env=processes.environment(PYTHONPATH=""), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_registered(folder: Path, uri: str) -> None:
    result = call(folder, "-f", "timm", "-f", "transformers", "--register", "tiny vit", "--alias", "champion")
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
    again = call(folder, "-f", "timm", "-f", "transformers", "-o", tmp_path / "2", "--register", "tiny vit")
    assert again.output.splitlines()[-1] == "models:/tiny vit/1"
    other = call(folder, "-f", "timm", "-o", tmp_path / "3", "--register", "tiny vit", "--alias", "champion")
    assert other.output.splitlines()[-1] == "models:/tiny vit/2"
    client = mlflow_client(uri)
    assert client.get_model_version_by_alias("tiny vit", "champion").version in (2, "2")
    run_id = (folder / "tracking" / "mlflow_run_id").read_text().strip()
    assert client.get_model_version("tiny vit", "1").run_id == run_id


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
    result = call(tmp_path / "run", "-f", "timm", *options)
    assert result.exit_code == 2 and reason in result.stderr
    assert not (tmp_path / "run" / "export").exists()

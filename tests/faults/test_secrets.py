"""What a run keeps and says, with secrets in its environment or in its settings."""

from pathlib import Path

import pytest

from tests import processes, tiny_run
from tests.faults.test_ranks import errors

pytestmark = pytest.mark.distributed
SECRETS = {
    "MLFLOW_TRACKING_URI": "http://me:pass-of-the-uri@127.0.0.1:9",
    "MLFLOW_TRACKING_TOKEN": "value-of-the-token",
    "HF_TOKEN": "hf_valueofanothertoken",
    "WANDB_API_KEY": "value-of-a-stranger",
}


def test_a_run_keeps_and_says_no_secret_of_its_environment(tmp_path: Path) -> None:
    tracking = {
        "enabled": True,
        "drain_seconds": 1,
        "system_metrics_seconds": 0,
        "tags": {"note": "value-of-a-stranger"},
    }
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 2}, tracking=tracking)
    with processes.launched(tiny_run.pretrain(recipe), 1, tmp_path / "log", **SECRETS) as ranks:
        assert ranks.wait() == [0], ranks.log
    assert "MLflow at http://***@127.0.0.1:9" in ranks.log
    written = {
        path: path.read_bytes().decode(errors="replace") for path in (tmp_path / "run").rglob("*") if path.is_file()
    }
    told = {
        path.name
        for path, text in {**written, tmp_path / "log": ranks.log}.items()
        if "pass-of" in text or "valueof" in text
    }
    assert not told
    # A person's own tag is in their own settings; what is sent on is masked.
    assert {path.name for path, text in written.items() if "value-of" in text} <= {"config.yaml", "run_state.json"}


def test_a_setting_that_holds_a_password_is_refused_without_being_told(tmp_path: Path) -> None:
    recipe = tiny_run.write_recipe(tmp_path)
    uri = "tracking.uri=postgresql://me:correct-horse@db/mlflow"
    done = processes.run(tiny_run.pretrain(recipe, uri), check=False)
    (line,) = errors(done.stderr)
    assert done.returncode == 2 and "tracking.uri=postgresql://***@db/mlflow: holds a password" in line
    assert "MLFLOW_TRACKING_URI" in line and "correct-horse" not in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()

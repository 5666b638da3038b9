"""What a run keeps and says, with secrets in its environment or in its settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmt_ds.config.load import load_config
from dmt_ds.errors import ConfigError
from tests import processes, tiny_run
from tests.processes import errors

pytestmark = pytest.mark.distributed
SECRETS = {
    "MLFLOW_TRACKING_URI": "http://me:pass-of-the-uri@127.0.0.1:9",
    "MLFLOW_TRACKING_TOKEN": "value-of-the-token",
    "HF_TOKEN": "hf_valueofanothertoken",
    "WANDB_API_KEY": "value-of-a-stranger",
}


def test_a_run_keeps_and_says_no_secret_of_its_environment(tmp_path: Path) -> None:
    tracking = {"enabled": True, "drain_seconds": 1, "system_metrics_seconds": 0}
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
        if "pass-of" in text or "valueof" in text or "value-of" in text
    }
    assert not told


STRANGER = """
import logging, sys, threading
import dmt_ds.cli.training
from dmt_ds.cli import main

SECRETS = "http://me:pass-of-the-uri@h with value-of-the-token"

def fail(*_):
    try:
        raise ValueError(f"inner: {SECRETS}")
    except ValueError as error:
        logging.getLogger("stranger").exception("asked %s", SECRETS)
        raise RuntimeError(f"outer: {SECRETS}") from error

def in_a_thread(*_):
    stranger = logging.getLogger("stranger")  # as MLflow and DeepSpeed have them
    stranger.addHandler(logging.StreamHandler())
    stranger.propagate = False
    thread = threading.Thread(target=fail, name="a-thread")
    thread.start()
    thread.join()
    fail()

dmt_ds.cli.training.load_recipe = in_a_thread
sys.argv = ["dmt-ds", *sys.argv[1:], "config", "-c", "vit_tiny"]
main()
"""


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_a_bug_tells_no_secret_in_any_traceback_nor_through_a_strangers_logger(options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *options],
        env={**os.environ, **SECRETS}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    for words, times in {"RuntimeError: outer:": 2, "ValueError: inner:": 4, "asked": 2}.items():
        assert done.stderr.count(f"{words} http://***@h with ***\n") == times, done.stderr
    assert "Exception in thread a-thread:" in done.stderr
    assert not any(secret in done.stderr for secret in ("pass-of", "value-of")), done.stderr


def test_a_setting_that_holds_a_password_is_refused_without_being_told(tmp_path: Path) -> None:
    recipe = tiny_run.write_recipe(tmp_path)
    uri = "tracking.uri=postgresql://me:correct-horse@db/mlflow"
    done = processes.run(tiny_run.pretrain(recipe, uri), check=False)
    (line,) = errors(done.stderr)
    assert done.returncode == 2 and "tracking.uri=postgresql://***@db/mlflow: holds a password" in line
    assert "MLFLOW_TRACKING_URI" in line and "correct-horse" not in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tracking.tags.note=value-of-a-stranger", "tracking.tags.note=***"),
        ("output_dir=runs/value-of-a-stranger", "output_dir=runs/***"),
        ("tracking.uri=https://h/api?access_token=correct-horse", "tracking.uri=https://h/api?access_token=***"),
        ("tracking.uri=https://correct-horse@h/api", "tracking.uri=https://***@h/api"),
        ("tracking.tags.api_token=correct-horse", "tracking.tags.api_token=***"),
    ],
)
def test_a_setting_that_holds_any_secret_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, override: str, told: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRETS["WANDB_API_KEY"])
    with pytest.raises(ConfigError) as caught:
        load_config("vit_tiny", [override])
    assert str(caught.value).startswith(f"command line: {told}: holds a password, a token or the value of a secret")
    assert "\n" not in str(caught.value)
    assert "value-of-a-stranger" not in str(caught.value) and "correct-horse" not in str(caught.value)

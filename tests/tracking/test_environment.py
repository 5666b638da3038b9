"""A run can be found by where it ran, and its environment built again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmt_ds.tracking import environment
from dmt_ds.tracking.environment import code_changes, environment_record, environment_tags, library_versions


def test_ids_of_a_slurm_job_become_tags() -> None:
    environ = {"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": "1", "SLURM_JOB_NODELIST": "n[1-4]", "SLURM_JOB_NAME": ""}
    tags = environment_tags(environ)
    assert {key: value for key, value in tags.items() if key.startswith("slurm.")} == {
        "slurm.job_id": "42",
        "slurm.restarts": "1",
        "slurm.nodes": "n[1-4]",
    }


def test_the_commit_of_a_checkout_is_a_tag() -> None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip(f"{root} is no git checkout")
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert environment_tags({})["git.commit"] == head.stdout.strip()


def test_the_record_names_versions_and_every_package_and_fits_json() -> None:
    record = json.loads(json.dumps(environment_record()))
    assert record["torch"] == torch.__version__
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert any(package.lower().startswith("pytest==") for package in record["packages"])
    assert all(record[key] for key in ("hostname", "platform", "deepspeed", "mlflow"))


def test_what_is_not_committed_is_kept_so_that_it_can_be_applied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "dmt_ds" / "tracking"
    package.mkdir(parents=True)
    (losses := tmp_path / "dmt_ds" / "losses.py").write_text("METADATA_KEY = 'dmt_ds_weights'\nfactor = 1\n")

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(environment, "__file__", str(package / "environment.py"))
    monkeypatch.setenv("SOME_TOKEN", "value-of-the-token")
    assert code_changes() == ""
    losses.write_bytes(b"METADATA_KEY = 'dmt_ds_weights'\nfactor = 2  # \xe9 \nkey = 'value-of-the-token'\n")
    (tmp_path / "changes.diff").write_text(changes := code_changes())
    assert "value-of" not in changes
    git("stash")
    git("apply", "changes.diff")
    applied = "METADATA_KEY = 'dmt_ds_weights'\nfactor = 2  # \ufffd \nkey = '***'\n"
    assert losses.read_bytes() == applied.encode()
    monkeypatch.setattr(environment, "_LONGEST_CHANGES", 20)
    assert code_changes() == f"{changes[:20]}\n(cut here: {len(changes) - 20} more characters)\n"


def test_versions_are_known_of_libraries_whose_arithmetic_is_in_the_losses() -> None:
    versions = library_versions()
    assert versions["torch"] == torch.__version__ and {"timm", "deepspeed", "torchvision", "pillow"} <= set(versions)


def test_tags_need_no_torch() -> None:
    code = "import sys; from dmt_ds.tracking.environment import environment_tags; environment_tags({})"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=True)

"""Where a job finds its checkout: Slurm knows which file was submitted, and may be slow to say so. No cluster."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.slurm_cluster import SCRIPTS, program

JOBS = [path.name for path in sorted(SCRIPTS.glob("*.sh")) if "Command=" in path.read_text()]
FOUND = 'echo "the checkout is $home"; exit 0\n'
RECORD = "JobId=1 JobName=a\n   Command={0}/slurm/{1} some words\n   WorkDir={0}\n"


def start(folder: Path, name: str, unanswered: int, records: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a script as Slurm does, which has copied it elsewhere; its checkout only says where it was found."""
    home = folder / "checkout"
    (home / "slurm").mkdir(parents=True)
    for file in ("job.sh", "site.sh", name):
        (home / "slurm" / file).write_text(FOUND)
    (folder / "records").write_text(RECORD.format(home, name) * records)
    program(folder, "scontrol", f"echo >>asked; if (($(wc -l <asked) <= {unanswered})); then exit 1; fi; cat records")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "DMT_DS_"))}
    known = {**plain, **program(folder, "sleep", ""), "SLURM_JOB_ID": "1"}
    (folder / "spool").mkdir()
    copy = shutil.copy(SCRIPTS / name, folder / "spool" / "slurm_script")
    return subprocess.run(["bash", copy], env=known, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", JOBS)
def test_a_controller_that_does_not_answer_at_once_is_asked_again(tmp_path, name):
    started = start(tmp_path, name, unanswered=2)
    assert started.stdout == f"the checkout is {tmp_path}/checkout\n", started.stderr
    assert (tmp_path / "asked").read_text() == "\n" * 3


def test_a_controller_that_tells_of_a_whole_array_is_asked_once(tmp_path):
    """So it does where the job is the array's last task: what is too long for a pipe must be read to its end."""
    started = start(tmp_path, "suite.sh", unanswered=0, records=10_000)
    assert started.stdout == f"the checkout is {tmp_path}/checkout\n"
    assert (tmp_path / "asked").read_text() == "\n"


@pytest.mark.parametrize("name", ["pretrain_vit_t.sh", "mlflow_server.sh"])
def test_what_nobody_tells_is_not_taken_for_a_folder(tmp_path, name):
    started = start(tmp_path, name, unanswered=100)
    assert started.returncode != 0 and "DMT_DS_HOME" in started.stderr and not started.stdout
    assert (tmp_path / "asked").read_text() == "\n" * 12

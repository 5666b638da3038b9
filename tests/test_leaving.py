"""How the command's process ends: with its own exit code, and with nothing left undone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

GLOO_IS_STILL_BUSY = """
import sys, torch, torch.distributed as torch_dist
import dmt_ds.__main__ as entry
def main():
    torch_dist.init_process_group("gloo")
    for _ in range(400):
        torch_dist.all_reduce(torch.zeros(1 << 18), async_op=True)
    sys.exit(0)
entry.main = main
entry.start()
"""


@pytest.mark.distributed
def test_a_run_that_is_finished_ends_well_whatever_gloo_still_holds(tmp_path: Path) -> None:
    script = tmp_path / "busy.py"
    script.write_text(GLOO_IS_STILL_BUSY)
    assert "terminate called" not in processes.run([str(script)], processes=2).stderr


@pytest.mark.parametrize("code", [0, 3])
def test_what_waits_for_the_end_is_done_before_the_process_leaves(code: int, tmp_path: Path) -> None:
    script = tmp_path / "leaving.py"
    script.write_text(
        "import atexit, sys\n"
        "import dmt_ds.__main__ as entry\n"
        "def main():\n"
        "    atexit.register(print, 'sent')\n"
        f"    sys.exit({code})\n"
        "entry.main = main\n"
        "entry.start()\n"
    )
    done = processes.run([str(script)], check=False)
    assert (done.returncode, done.stdout) == (code, "sent\n")


def test_a_disk_that_is_full_at_the_end_is_still_told() -> None:
    with Path("/dev/full").open("w") as full:
        words = processes.command(["-m", "dmt_ds", "--version"])
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, env=processes.environment())
    assert done.returncode != 0 and "No space left" in done.stderr


def test_a_command_without_an_output_ends_quietly() -> None:
    words = [sys.executable, "-m", "dmt_ds", "--version"]
    shell = ["bash", "-c", 'exec "$@" >&-', "bash", *words]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, env=processes.environment())
    assert (done.returncode, done.stderr) == (0, "")

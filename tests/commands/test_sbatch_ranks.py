"""How many tasks a job will have, read off its options and its script; tests/slurm holds it against a real Slurm."""

from pathlib import Path

import pytest

from dmt_ds.commands.suites.sbatch_ranks import ranks_of

HEADER = """#!/usr/bin/env bash
#SBATCH --job-name=x --nodes=2   # of eight
#SBATCH --ntasks-per-node=8

# a word
echo
#SBATCH --nodes=64
"""


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ([], 16),
        (["--nodes=4", "--time=9", "--nodelist=a,b"], 32),
        (["--nodes", "1", "--ntasks-per-node", "4"], 4),
        (["-N3"], 24),
        (["-N", "3", "-n", "5"], 5),
        (["--ntasks=12"], 12),
        (["--nodes=2-4"], None),
        (["--nodes=2", "--ntasks-per-gpu=1"], None),
        (["--nodes="], None),
    ],
)
def test_options_win_over_the_lines_of_the_script(tmp_path: Path, options: list[str], ranks: int | None) -> None:
    (tmp_path / "job.sh").write_text(HEADER)
    assert ranks_of(tmp_path / "job.sh", options) == ranks


def test_a_script_without_a_word_of_it_is_one_task(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("#!/bin/sh\necho\n")
    assert ranks_of(tmp_path / "job.sh", []) == 1

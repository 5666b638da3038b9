"""Overrides, names and paths reach a program as they were written, whatever they hold, and no shell runs any of it.

The scripts are run by bash with `srun`, `scontrol`, `sbatch` and Python replaced by programs that note what they get.
"""

import configparser
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_ds.commands.suites.suite_slurm import Array, show
from dmt_ds.config.suite_run import as_overrides
from dmt_ds.config.yaml_text import parse_value
from tests.processes import free_port

SCRIPTS = Path(__file__).parents[2] / "slurm"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

PROGRAMS = {
    "python": """if [[ $3 == config ]]; then printf 'run\\nnull\\n'; exit 0; fi
if [[ $3 == suite ]]; then cat "$LINES_OF_RUN"; exit 0; fi
printf '%s\\0' "$@" >>"$NOTED"
run=run; if [[ ${!#} == output_dir=run-* ]]; then run=${!#}; fi
if [[ $2 == dmt_ds ]]; then mkdir -p "${run#output_dir=}"; date +%N >"${run#output_dir=}/DONE"; fi""",
    "srun": 'while [[ $1 == --* ]]; do shift; done; SLURM_PROCID=0 exec "$@"',
    "scontrol": 'if [[ "$*" == *hostnames* ]]; then echo node1; else echo "JobState=RUNNING"; fi',
    "sbatch": """printf '%s\\0' "$@" >>"$NOTED"; echo 7""",
}
LETTERS = st.characters(exclude_characters="\0", exclude_categories=("Cs",))
HOSTILE = [
    "$(touch MARK)", "`touch MARK`", "; touch MARK", "| touch MARK", "&& touch MARK", "\ntouch MARK\n",
    "';touch MARK;'",
    '"; touch MARK; "', "${IFS}", "$HOME", "~", "*", "a b", "  ", "\\", "-rf", "%a", "!!", "#x", "<(touch MARK)",
]  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(HOSTILE), st.text(LETTERS, max_size=12), st.lists(st.sampled_from(HOSTILE)).map("".join)
)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Runs a script of slurm/ with the stand-ins; gives the words that the last program got."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MLFLOW_", "DMT_DS_"))}

    def run(words: list[str], **environment: str) -> list[str]:
        (folder / "noted").write_bytes(b"")
        job = {
            "SLURM_JOB_ID": "5",
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_NTASKS": "1",
            "DMT_DS_HOME": str(SCRIPTS.parent),
        }
        job |= {
            "DMT_DS_PYTHON": "python",
            "DMT_DS_DOCTOR": "0",
            "DMT_DS_SITE": "/nothing",
            "NOTED": str(folder / "noted"),
        }
        job |= {"PATH": f"{folder / 'bin'}:{plain['PATH']}"}
        command = ["bash", *words]
        done = subprocess.run(command, env={**plain, **job, **environment}, cwd=folder, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert not (folder / "MARK").exists()
        return (folder / "noted").read_bytes().decode().split("\0")[:-1]

    return run


@settings(max_examples=60)
@given(words=st.lists(WORDS, max_size=5))
def test_overrides_of_a_job_are_not_run_by_its_shell(shell, words):
    overrides = [f"data.path={word}" for word in words]
    noted = shell([str(SCRIPTS / "pretrain_vit_t.sh"), *overrides])
    assert noted == ["-m", "dmt_ds", "pretrain", "-c", "vit_tiny", *overrides]


@settings(max_examples=30)
@given(words=st.lists(WORDS.map(lambda word: "".join(word.split())).filter(bool), min_size=1, max_size=4))
def test_words_of_a_sweeps_line_are_not_run_by_its_shell(shell, words, tmp_path_factory):
    lines = tmp_path_factory.mktemp("sweep") / "lines $(touch MARK).txt"
    lines.write_text(f"first\nseed=1 {' '.join(words)}\n")
    noted = shell([str(SCRIPTS / "sweep.sh"), str(lines)], SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="5")
    given = [word.replace("%a", "2") for word in words]
    assert noted == ["-m", "dmt_ds", "pretrain", "-c", "vit_tiny", "seed=1", *given, "output_dir=run-2"]


@settings(max_examples=30)
@given(values=st.dictionaries(st.sampled_from(["data.path", "name", "tracking.run_name"]), WORDS, min_size=1))
def test_a_suites_settings_reach_the_task_of_an_array_line_by_line(shell, values, tmp_path_factory):
    overrides = as_overrides(values)
    (told := tmp_path_factory.mktemp("suite") / "told").write_text("\n".join(["-c", "vit_tiny", *overrides]) + "\n")
    task = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "5", "LINES_OF_RUN": str(told)}
    noted = shell([str(SCRIPTS / "suite.sh"), "seeds", "$(touch MARK)"], **task)
    assert noted[:4] == ["-m", "dmt_ds", "pretrain", "-c"]
    assert noted[5 : 5 + len(values)] == [override.replace("%a", "1") for override in overrides]


@given(WORDS | st.text())
def test_a_suites_value_is_one_line_that_is_read_back_as_it_was(text):
    (override,) = as_overrides({"name": text})
    assert "\n" not in override
    assert parse_value(override.removeprefix("name="), "test") == text


@settings(max_examples=30)
@given(words=st.lists(WORDS, min_size=1, max_size=5))
def test_commands_that_are_shown_for_a_shell_are_what_would_be_submitted(shell, words):
    lines: list[str] = []
    show([Array("seeds", "x", words[:2], ["suite.sh", *words[2:]])], lines.append)
    assert shell(["-c", "\n".join(lines)]) == [*words[:2], "suite.sh", *words[2:]]


@pytest.mark.parametrize("name", ["a b", "$(touch MARK)", "it's", 'say "x"', "100%", "%(here)s", "`touch MARK`;&"])
def test_a_stores_path_is_not_run_by_the_servers_script(shell, tmp_path, name):
    store = tmp_path / name.replace("/", "") / "mlflow.db"
    auth = {"AUTH": "1", "MAKE_PASSWORD": "1", "PORT": str(free_port())}
    noted = shell([str(SCRIPTS / "mlflow_server.sh"), str(store)], **auth)
    assert noted[noted.index("--artifacts-destination") + 1] == str(store.parent / "mlartifacts")
    assert noted[noted.index("--host") + 1] == "127.0.0.1"
    read = configparser.ConfigParser()  # as MLflow reads it
    read.read(store.parent / "mlflow_auth.ini")
    assert read["mlflow"]["database_uri"] == f"sqlite:///{store.parent}/mlflow_auth.db"


def test_a_stores_path_with_a_line_break_is_refused(tmp_path):
    store = tmp_path / "a\nauthorization_function = os:system" / "mlflow.db"
    done = subprocess.run(["bash", str(SCRIPTS / "mlflow_server.sh"), str(store)], capture_output=True, text=True)
    assert done.returncode == 2 and "line break" in done.stderr and not store.parent.exists()


@pytest.mark.parametrize("script", [path.name for path in sorted(SCRIPTS.glob("*.sh")) if "job.sh" in path.read_text()])
def test_a_script_for_sbatch_that_is_run_by_hand_says_so_in_one_line(script: str) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "DMT_DS_"))}
    done = subprocess.run(["bash", SCRIPTS / script], env=outside, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"start it with: sbatch {SCRIPTS / script} ...\n"

"""How a training job ends, by what Slurm says of it. `scontrol` and `srun` are stand-ins too: no cluster."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.slurm_cluster import ROOT, SCRIPTS, is_alive, program, wait_until

SAVED = ("fail_at=3", "code=0")
"""The ranks end with 0 at step 3, as they do when they are asked to save."""
REQUEUED = -9
"""Slurm ends the job's shell, and so does the stand-in."""
SRUN = 'while [[ $1 == --* ]]; do shift; done; exec "$@"'
SCONTROL = """
show() { echo "JobId=1 JobName=a JobState=RUNNING Reason=None Requeue=1 Restarts=0 BatchFlag=1"; }
requeue() { kill -KILL $PPID; }
ping() { true; }
asked() { grep -c "^$1" "$0.asked"; }
echo "$@" >>"$0.asked"
%s
case $* in
"show hostnames"*) echo node ;;
ping) ping ;;
*"show job 1"*) show ;;
"requeue 1"*) requeue ;;
esac
"""
JOB = {
    "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "DMT_DS_HOME": str(ROOT), "DMT_DS_SITE": "/nothing", "DMT_DS_DOCTOR": "0",
    "DMT_DS_CONTROLLER_SECONDS": "2", "DMT_DS_CONTROLLER_RETRY_SECONDS": "0.1",
}  # fmt: skip
Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(stand_in: str, tmp_path: Path) -> Train:
    """Runs a training script where `scontrol` does what a piece of bash says; tells how it ended."""
    program(tmp_path, "srun", SRUN)

    def train(scontrol: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = program(tmp_path, "scontrol", SCONTROL % scontrol)
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MLFLOW_", "DMT_DS_"))}
        known = {**plain, **JOB, "DMT_DS_PYTHON": stand_in, **path, **environment}
        command = [SCRIPTS / "pretrain_vit_t.sh", "seconds=0", *words]
        return subprocess.run(command, env=known, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return train


def asked(folder: Path, words: str) -> int:
    """How often `scontrol WORDS...` was called."""
    return (folder / "scontrol.asked").read_text().count(f"{words}\n")


@pytest.mark.parametrize(
    "nothing", ["return 1", "true", "echo", "echo 'slurm_load_jobs error: Unable to contact slurm controller'"]
)
def test_a_saved_run_is_not_taken_for_finished_where_slurm_gives_no_answer(train, tmp_path, nothing):
    ended = train(f"show() {{ {nothing}; }}", *SAVED)
    assert ended.returncode == 75 and "no answer" in ended.stdout and "cancelled" not in ended.stdout
    assert asked(tmp_path, "--oneliner show job 1") > 1 and not asked(tmp_path, "requeue 1")


def test_a_saved_run_goes_back_to_the_queue_as_soon_as_slurm_answers(train, tmp_path):
    ended = train("if (($(asked --oneliner) < 4)); then show() { return 1; }; fi", *SAVED)
    assert ended.returncode == REQUEUED and asked(tmp_path, "--oneliner show job 1") == 4


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "COMPLETING", "PENDING"])
def test_what_slurm_has_ended_stays_away_and_is_not_taken_for_finished(train, tmp_path, state):
    ended = train(f"show() {{ echo JobId=1 JobState={state} Requeue=1 Restarts=0; }}", *SAVED)
    assert ended.returncode == 75 and f"cancelled or has reached its time limit ({state})" in ended.stdout
    assert asked(tmp_path, "--oneliner show job 1") == 1 and not asked(tmp_path, "requeue 1")


def test_a_crash_keeps_its_exit_code_where_slurm_has_ended_the_job(train):
    assert train("show() { echo JobState=CANCELLED; }", "fail_at=3", "code=7").returncode == 7


def test_what_is_finished_asks_nobody(train, tmp_path):
    assert train("show() { return 1; }").returncode == 0
    assert not asked(tmp_path, "--oneliner show job 1")


@pytest.mark.parametrize(("answers_from", "code"), [(4, 0), (1000, 1)])
def test_ranks_start_as_soon_as_the_controller_answers_and_srun_says_that_it_does_not(
    train, tmp_path, answers_from, code
):
    ping = f"ping() {{ (($(asked ping) >= {answers_from})); }}"
    program(tmp_path, "srun", f'"${{0%/*}}/scontrol" ping || {{ echo "no controller" >&2; exit 1; }}; {SRUN}')
    ended = train(ping)
    assert ended.returncode == code and ("no controller" in ended.stderr) == bool(code)
    assert ended.stderr.count("no answer from Slurm's controller: retrying for 2 s") == 1


def test_a_mark_that_can_not_be_read_any_more_is_no_new_one(train, tmp_path):
    assert train("", "steps=2").returncode == 0
    program(tmp_path, "srun", f"touch started; {SRUN}")
    program(tmp_path, "stat", 'if [[ -e started ]]; then exit 1; fi; exec /usr/bin/stat "$@"')
    assert train("", "steps=9", *SAVED).returncode == REQUEUED


def test_a_requeue_that_fails_while_the_controller_is_away_is_tried_again(train, tmp_path):
    ended = train("if (($(asked requeue) < 3)); then requeue() { return 1; }; fi", *SAVED)
    assert ended.returncode == REQUEUED and asked(tmp_path, "requeue 1") == 3


def test_a_requeue_whose_answer_was_lost_is_neither_asked_for_again_nor_told_as_a_cancellation(train, tmp_path):
    program(tmp_path, "sleep", "")
    show = "if [[ -e taken ]]; then show() { echo JobState=PENDING Restarts=1; }; fi"
    ended = train(f"requeue() {{ touch taken; return 1; }}; {show}", *SAVED)
    assert ended.returncode == 75 and "cancelled" not in ended.stdout and asked(tmp_path, "requeue 1") == 1


def test_a_job_that_must_not_be_requeued_is_asked_for_once(train, tmp_path):
    show = "show() { echo JobState=RUNNING Requeue=0 Restarts=0; }"
    ended = train(f"{show}; requeue() {{ return 1; }}", *SAVED)
    assert ended.returncode == 75 and "can't requeue" in ended.stdout and asked(tmp_path, "requeue 1") == 1


@pytest.mark.parametrize(("restarts", "code"), [("2", REQUEUED), ("3", 75)])
def test_an_attempt_that_was_cut_off_does_not_requeue_the_one_that_came_after_it(train, tmp_path, restarts, code):
    show = f"show() {{ echo JobState=RUNNING Requeue=1 Restarts={restarts}; }}"
    assert train(show, *SAVED, SLURM_RESTART_COUNT="2").returncode == code
    assert asked(tmp_path, "requeue 1") == (code == REQUEUED)


STOPS = "train.stop_after_step={}".format


def test_a_run_that_stops_where_it_was_told_to_has_ended_and_so_has_each_later_start_of_it(train, tmp_path):
    for step in (3, 3, 2):
        ended = train("", STOPS(step))
        assert ended.returncode == 0 and f"stopped at train.stop_after_step={step}" in ended.stdout
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step00000003"
    assert not asked(tmp_path, "--oneliner show job 1")


def test_a_start_that_finds_nothing_to_do_has_ended_though_latest_was_not_written_any_more(train, tmp_path):
    """A node died after the last save had its name; the trainer looks at names, not at `latest`."""
    train("", STOPS(8), *SAVED)
    program(tmp_path, "trainer", "if [[ $3 == config ]]; then printf 'run\\n4\\n'; fi")
    assert train("", STOPS(4), DMT_DS_PYTHON=str(tmp_path / "trainer")).returncode == 0


def test_ranks_that_were_preempted_before_the_step_where_they_stop_go_back_to_the_queue(train, tmp_path):
    assert train("", STOPS(4), *SAVED).returncode == REQUEUED
    assert asked(tmp_path, "requeue 1") == 1


def test_a_doctor_that_crashes_or_finds_a_disk_without_an_answer_is_not_told_as_an_error_of_the_user(train):
    for code in (2, 75, 137):
        ended = train("", f"doctor={code}", DMT_DS_DOCTOR="1")
        assert ended.returncode == code and "start at" not in ended.stdout


@pytest.mark.parametrize("requeues", [True, False])
def test_a_judging_that_the_time_limit_cuts_off_is_ended_and_goes_back_to_the_queue(stand_in, tmp_path, requeues):
    program(tmp_path, "srun", SRUN)
    path = program(tmp_path, "scontrol", SCONTROL % "")
    slow = "if [[ $3 == evaluate && ! -e judged ]]; then echo $$ >judging; touch judged; exec sleep 60; fi"
    program(tmp_path, "trainer", f'{slow}; exec {stand_in} "$@"')
    task = {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0", "DMT_DS_MAX_RESTARTS": "20" if requeues else "0"}
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MLFLOW_", "DMT_DS_"))}
    known = {**plain, **JOB, "DMT_DS_PYTHON": str(tmp_path / "trainer"), **path, **task}
    command = [SCRIPTS / "suite.sh", "seeds", "small", "seconds=0", "steps=2"]
    with subprocess.Popen(command, env=known, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as job:
        wait_until((tmp_path / "judging").exists, 30, lambda: "nothing is judged")
        job.send_signal(signal.SIGUSR1)
        said, _ = job.communicate(timeout=30)
    assert job.returncode == (REQUEUED if requeues else 75), said
    assert asked(tmp_path, "requeue 1_0") == requeues
    assert not is_alive((tmp_path / "judging").read_text().strip())
    again = subprocess.run(
        command, env={**known, "SLURM_RESTART_COUNT": "1"}, cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 0 and "evaluate ['-e', 'suite/0']" in again.stdout

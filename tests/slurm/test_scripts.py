"""What the scripts do with ends, signals and settings; a stand-in takes the trainer's place, so it takes seconds."""

import re
import subprocess
from pathlib import Path

import pytest

from dmt_ds.commands.suites.sbatch_ranks import ranks_of
from tests.slurm.slurm_cluster import ROOT, SCRIPTS, SMALL, Cluster, Job, output_of, program

TRAINING = [
    "pretrain_vit_t.sh",
    "pretrain_vit_s.sh",
    "pretrain_vit_b.sh",
    "pretrain_family.sh",
    "finetune_imagenet.sh",
    "segment_ade20k.sh",
    "detect_coco.sh",
    "make_teacher.sh",
    "sweep.sh",
    "suite.sh",
]
JOBS = [path.name for path in sorted(SCRIPTS.glob("*.sh")) if "#SBATCH" in path.read_text()]


@pytest.fixture
def submit(cluster: Cluster, stand_in: str, tmp_path: Path):
    """Submits a script with the stand-in; options and environment may be added."""

    def submit(script: str, *words: str, options: tuple[str, ...] = (), **environment: str) -> Job:
        environment = {"DMT_DS_PYTHON": stand_in, **environment}
        return cluster.submit(script, *words, folder=tmp_path, options=(*SMALL, *options), **environment)

    return submit


def starts(job: Job) -> list[str]:
    """Steps that the first rank of each attempt started at."""
    return [line.split()[4].rstrip(",") for line in job.text().splitlines() if line.startswith("stand-in 0: start at")]


def test_all_scripts_with_a_header_are_tested():
    assert set(TRAINING) <= set(JOBS)


@pytest.mark.parametrize("script", JOBS)
def test_slurm_takes_the_header_of(cluster, script):
    output_of("sbatch", "--test-only", SCRIPTS / script)


@pytest.mark.parametrize(
    "options",
    ["", "--nodes=1", "-N 3 --ntasks-per-node=1", "--ntasks=3", "-N2 -n2", "-N1 --ntasks-per-node 3"],
)
def test_a_job_has_as_many_tasks_as_were_read_off_its_options(cluster, tmp_path, options):
    (tmp_path / "job.sh").write_text(
        "#!/bin/bash\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=2 --output=%j.out\n"
        "echo tasks ${SLURM_NTASKS:-$((SLURM_JOB_NUM_NODES * ${SLURM_NTASKS_PER_NODE:-1}))}.\n"
    )
    number = cluster.at(tmp_path, ["sbatch", "--parsable", *options.split(), tmp_path / "job.sh"])
    known = ranks_of(tmp_path / "job.sh", options.split())
    cluster.job(number, tmp_path).until_log(f"tasks {known}\\.")


def test_no_script_names_a_site():
    words = ("--account", "--partition", "--qos", "--constraint", "--container-image")
    found = [
        f"{name}: {line}"
        for name in JOBS
        for line in (SCRIPTS / name).read_text().splitlines()
        if line.startswith("#SBATCH") and any(word in line for word in words)
    ]
    assert not found


def test_a_job_finishes_on_tasks_of_two_nodes_that_know_the_first_ones_address(submit, tmp_path):
    job = submit("pretrain_vit_b.sh").ends_as("COMPLETED")
    assert (tmp_path / "run" / "DONE").exists()
    lines = [line for line in job.text().splitlines() if "start at" in line]
    assert len(lines) == 4
    port = 10000 + int(job.number) % 20000
    assert all(f"{job.nodes[0]}:{port}" in line for line in lines)
    assert sorted(line.rsplit(" ", 1)[1] for line in lines) == ["0", "0", "1", "1"]
    assert "doctor ['-c', 'vit_base', '--ranks', '4']" in job.text()


def test_overrides_reach_the_trainer_as_they_are_written(submit, tmp_path):
    odd = "output_dir=a b $HOME `x` * [1, 2]"
    submit("pretrain_vit_t.sh", odd).ends_as("COMPLETED")
    assert (tmp_path / odd.split("=", 1)[1] / "DONE").exists()


def test_what_the_doctor_finds_ends_the_job_before_a_task_starts(submit):
    job = submit("pretrain_vit_b.sh", "doctor=2").ends_as("FAILED")
    assert job.field("ExitCode") == "2:0" and "start at" not in job.text()


def test_a_signal_while_python_imports_is_repeated_and_kills_no_rank(submit):
    job = submit("pretrain_vit_b.sh", "steps=100", "save_every=100", "deaf=4").until_log("0: importing")
    job.scancel("--batch", "--signal=USR1")
    job.until_log("saved at")
    assert "error" not in job.text()


def test_a_preempted_job_saves_in_its_grace_time_and_comes_back(submit, cluster, tmp_path):
    job = submit("pretrain_vit_b.sh", "steps=30", "save_every=100", options=("--nodes=4",)).until_log("7: start at 0")
    all_nodes = ("--partition=urgent", "--nodes=4", "--exclusive", "--wrap=sleep 1", "--output=/dev/null")
    urgent = cluster.job(cluster.at(tmp_path, ["sbatch", "--parsable", *all_nodes]), tmp_path)
    urgent.ends_as("COMPLETED")
    job.ends_as("COMPLETED")
    assert job.restarts == 1 and "after ['SIGTERM']" in job.text() and int(starts(job)[1]) > 0


def test_a_cancelled_job_saves_and_stays_away(submit, tmp_path):
    job = submit("pretrain_vit_b.sh", "steps=100", "save_every=100").until_log("0: start at 0")
    job.scancel()
    job.ends_as("CANCELLED")
    job.until_log("cancelled or has reached its time limit")
    assert job.restarts == 0 and (tmp_path / "run" / "checkpoints" / "latest").exists()


def test_an_error_that_the_user_must_mend_is_not_tried_again(submit):
    job = submit("pretrain_vit_b.sh", "fail_at=3", "code=2").ends_as("FAILED")
    assert job.restarts == 0 and job.field("ExitCode") == "2:0"


def test_a_crash_after_progress_is_tried_again_and_one_without_is_not(submit):
    saved = submit("pretrain_vit_b.sh", "steps=8", "fail_at=3", "code=75", "save_every=1")
    nothing = submit("pretrain_vit_b.sh", "fail_at=2", "code=1", "save_every=9", "output_dir=other")
    assert saved.ends_as("COMPLETED").restarts == 1 and starts(saved) == ["0", "3"]
    assert nothing.ends_as("FAILED").restarts == 0 and "no checkpoint was written" in nothing.text()


def test_restarts_are_bounded(submit):
    job = submit("pretrain_vit_b.sh", "steps=1000", DMT_DS_MAX_RESTARTS="1").until_log("0: start at 0")
    job.scancel("--batch", "--signal=USR1")
    job.until_log("(?s)start at .*0: start at [1-9]")
    job.scancel("--batch", "--signal=USR1")
    job.ends_as("FAILED")
    assert job.field("ExitCode") == "75:0" and "not finished after 1 restarts" in job.text()


@pytest.mark.slow  # Slurm tells a controller of the end of ranks again only after a minute
def test_a_run_that_is_saved_while_the_controller_is_away_goes_back_to_the_queue(submit, cluster):
    job = submit("pretrain_vit_b.sh", "steps=8", "seconds=2").until_log("0: start at 0")
    job.scancel("--batch", "--signal=USR1")
    job.until_log("got USR1")
    with cluster.without_controller():
        job.until_log("saved at").until_log("Unable to contact slurm controller")
    job.ends_as("COMPLETED")
    assert job.restarts == 1 and int(starts(job)[1]) > 0


def test_a_job_that_must_not_be_requeued_is_saved_and_not_taken_for_finished(submit):
    job = submit("pretrain_vit_b.sh", "steps=1000", options=("--no-requeue",)).until_log("0: start at 0")
    job.scancel("--batch", "--signal=USR1")
    job.ends_as("FAILED")
    assert job.field("ExitCode") == "75:0" and job.restarts == 0
    assert job.text().count("presently disabled") == 1 and "can't requeue" in job.text()


def test_a_run_that_stops_where_it_was_told_to_ends_well(submit):
    job = submit("pretrain_vit_b.sh", "steps=100", "train.stop_after_step=3").ends_as("COMPLETED")
    assert job.restarts == 0 and "stopped at train.stop_after_step=3" in job.text()


def test_a_signal_in_the_very_step_where_a_run_stops_does_not_requeue_it(submit):
    job = submit("pretrain_vit_b.sh", "seconds=5", "train.stop_after_step=1").until_log("0: start at 0")
    job.scancel("--batch", "--signal=USR1")
    job.ends_as("COMPLETED")
    assert job.restarts == 0 and "got USR1" in job.text() and "stopped at train.stop_after_step=1" in job.text()


def test_a_mark_of_an_earlier_shorter_run_does_not_end_a_longer_one(submit, tmp_path):
    submit("pretrain_vit_b.sh", "steps=2").ends_as("COMPLETED")
    job = submit("pretrain_vit_b.sh", "steps=40", "save_every=100").until_log("0: start at 2")
    job.scancel("--batch", "--signal=USR1")
    job.ends_as("COMPLETED")
    assert job.restarts == 1 and int(starts(job)[1]) > 2
    assert (tmp_path / "run" / "DONE").read_text() == "40"


def test_tasks_of_an_array_get_their_number_and_a_folder_each_and_one_failure_stays_alone(cluster, stand_in, tmp_path):
    options = (*SMALL, "--nodes=1", "--array=0-3")
    job = cluster.submit(
        "pretrain_vit_t.sh", "fail_at=%a", "code=2", "steps=2", folder=tmp_path, options=options, DMT_DS_PYTHON=stand_in
    )
    tasks = [cluster.job(f"{job.number}_{index}", tmp_path) for index in range(4)]
    for index, state in enumerate(["COMPLETED", "FAILED", "FAILED", "COMPLETED"]):
        tasks[index].ends_as(state)
    assert [(tmp_path / f"run-{index}" / "DONE").exists() for index in range(4)] == [True, False, False, True]


def test_a_task_of_an_array_goes_back_to_the_queue_alone(cluster, stand_in, tmp_path):
    options = (*SMALL, "--nodes=1", "--array=0-1")
    job = cluster.submit("pretrain_vit_t.sh", "steps=60", folder=tmp_path, options=options, DMT_DS_PYTHON=stand_in)
    first, last = (cluster.job(f"{job.number}_{index}", tmp_path) for index in range(2))
    last.until_log(f"(?s)job {job.number}_1.*0: start at 0")
    last.scancel("--batch", "--signal=USR1")
    assert first.ends_as("COMPLETED").restarts == 0
    assert last.ends_as("COMPLETED").restarts == 1


def test_a_sweep_runs_each_line_of_its_file(cluster, stand_in, tmp_path):
    (tmp_path / "lines.txt").write_text("steps=2\nsteps=3 output_dir=mine\n")
    options = (*SMALL, "--nodes=1", "--array=1-2")
    job = cluster.submit("sweep.sh", "lines.txt", folder=tmp_path, options=options, DMT_DS_PYTHON=stand_in)
    for index in (1, 2):
        cluster.job(f"{job.number}_{index}", tmp_path).ends_as("COMPLETED")
    assert (tmp_path / "run-1" / "DONE").read_text() == "2" and (tmp_path / "mine" / "DONE").read_text() == "3"


def test_a_suites_array_trains_each_run_and_then_judges_it_and_nothing_that_failed(cluster, stand_in, tmp_path):
    options = (*SMALL, "--nodes=1", "--array=0-1")
    words = ("seeds", "small", "steps=3", "fail_at=%a", "code=2")
    job = cluster.submit("suite.sh", *words, folder=tmp_path, options=options, DMT_DS_PYTHON=stand_in)
    for index, state in enumerate(("COMPLETED", "FAILED")):
        cluster.job(f"{job.number}_{index}", tmp_path).ends_as(state)
    # Only now is it certain which file a task of the array wrote into.
    first, second = (cluster.job(f"{job.number}_{index}", tmp_path).text() for index in range(2))
    assert "evaluate ['-e', 'suite/0']" in first and "evaluate" not in second
    assert (tmp_path / "suite" / "0" / "DONE").read_text() == "3"


@pytest.mark.parametrize("stage", ["finetune", "detect"])
def test_what_a_suite_does_with_a_judged_run_is_an_array_too_and_is_judged_by_itself(
    cluster, stand_in, tmp_path, stage
):
    options = (*SMALL, "--nodes=1", "--array=0")
    job = cluster.submit("suite.sh", stage, "small", folder=tmp_path, options=options, DMT_DS_PYTHON=stand_in)
    text = cluster.job(f"{job.number}_0", tmp_path).ends_as("COMPLETED").text()
    assert f": {stage} ['-c', 'vit_tiny', 'output_dir=suite/0'" in text and "evaluate" not in text


@pytest.mark.parametrize(
    ("fail", "states"), [((), ("COMPLETED", "COMPLETED")), (("fail_at=1", "code=2"), ("FAILED", "CANCELLED"))]
)
def test_a_pipeline_judges_what_was_trained_and_nothing_else(cluster, stand_in, tmp_path, fail, states):
    words = [SCRIPTS / "pipeline.sh", "vit_t", *SMALL, "all:--gpus-per-node=0", "output_dir=mine", *fail]
    printed = cluster.at(tmp_path, words, DMT_DS_PYTHON=stand_in)
    trained, judged = (cluster.job(line.split()[1], tmp_path) for line in printed.splitlines())
    assert "stands under pipeline_vit_t_2" in trained.ends_as(states[0]).text()
    judged.ends_as(states[1])
    assert states[1] != "COMPLETED" or "knn ['-e', 'mine']" in judged.text()


def test_a_pipeline_may_fine_tune_what_was_trained_and_then_segment(cluster, stand_in, tmp_path):
    small = [f"all:{option}" for option in SMALL]
    words = [SCRIPTS / "pipeline.sh", "vit_t", "finetune", "segment=a b", *small, "output_dir=mine"]
    printed = cluster.at(tmp_path, words, DMT_DS_PYTHON=stand_in)
    tuned, segmented = (cluster.job(line.split()[1], tmp_path) for line in printed.splitlines()[2:])
    text = tuned.ends_as("COMPLETED").text()
    assert "0: finetune ['-e', 'mine']" in text and "doctor ['-e', 'mine', '--ranks', " in text
    words = "['-e', 'mine', 'data.path=a b', 'task=segment'"
    text = segmented.ends_as("COMPLETED").text()
    assert f"0: segment {words}]" in text and f"doctor {words}, '--ranks', " in text


@pytest.mark.parametrize(("script", "task"), [("segment_ade20k.sh", "segment"), ("detect_coco.sh", "detect")])
def test_what_learns_annotations_passes_its_words_and_its_task_on(submit, tmp_path, script, task):
    job = submit(script, "-e", "a b", "output_dir=mine").ends_as("COMPLETED")
    words = f"['-e', 'a b', 'output_dir=mine', 'task={task}'"
    assert job.text().count(f": {task} {words}]") == 4 and f"doctor {words}, '--ranks', '4']" in job.text()
    assert (tmp_path / "mine" / "DONE").exists()


def test_a_site_file_adds_to_srun_and_to_the_environment(submit, tmp_path):
    site = tmp_path / "site.sh"
    site.write_text("srun_options+=(--label)\nexport MASTER_PORT=23456\n")
    job = submit("pretrain_vit_t.sh", DMT_DS_SITE=str(site)).ends_as("COMPLETED")
    assert re.search(r"^3: stand-in 3: start at \d, .*:23456, local 1$", job.text(), re.MULTILINE), job.text()


@pytest.mark.parametrize("word", ["vit_x", "--nodes=2"])
def test_a_pipeline_without_a_student_says_what_is_wrong_above_its_usage(word):
    done = subprocess.run(["bash", SCRIPTS / "pipeline.sh", word], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"pipeline: error: {word}: name a student first: vit_t, vit_s or vit_b\n\nSubmits")


def test_the_mlflow_page_has_help_though_one_is_running_already():
    help_text = output_of("bash", SCRIPTS / "mlflow_server.sh", "--help")
    assert help_text.startswith("The page of an MLflow store:") and "PORT=5000" in help_text


@pytest.mark.parametrize(
    "words", ["finetune segment=/ade detect=/coco", "detect=/coco seed=1 segment=/ade --qos=q finetune"]
)
def test_a_pipeline_takes_its_words_in_any_order_and_passes_none_of_them_on(tmp_path, words):
    asked = tmp_path / "asked"
    path = program(tmp_path, "sbatch", f'echo "$*" >> {asked}; echo 7')["PATH"]
    printed = output_of("env", f"PATH={path}", SCRIPTS / "pipeline.sh", "vit_t", *words.split())
    assert [line.split()[0] for line in printed.splitlines()] == ["distil", "knn", "finetune", "segment", "detect"]
    own = {"finetune", "segment=/ade", "detect=/coco", "data.path=/ade", "data.path=/coco"}
    jobs = [set(line.split()) & own for line in asked.read_text().splitlines()]
    assert jobs == [set(), set(), set(), {"data.path=/ade"}, {"data.path=/coco"}]


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("knn.sh", "knn ['-e', 'a b', 'data.path=c d']"),
        ("finetune_imagenet.sh", "finetune ['-e', 'a b', 'data.path=c d']"),
        ("segment_ade20k.sh", "segment ['-e', 'a b', 'data.path=c d', 'task=segment']"),
        ("detect_coco.sh", "detect ['-e', 'a b', 'data.path=c d', 'task=detect']"),
    ],
)
def test_what_is_done_with_the_encoder_of_a_run_has_words_of_its_own(stand_in, tmp_path, script, command):
    program(tmp_path, "scontrol", "echo node")
    path = program(tmp_path, "srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')["PATH"]
    job = {"SLURM_JOB_ID": 1, "SLURM_JOB_NODELIST": "node", "SLURM_NTASKS": 1, "SLURM_PROCID": 0, "SLURM_LOCALID": 0}
    environment = {**job, "PATH": path, "DMT_DS_HOME": ROOT, "DMT_DS_PYTHON": stand_in}
    words = ["--of-run", "-c", "vit_tiny", "output_dir=a b", "--", "data.path=c d"]
    told = [f"{name}={value}" for name, value in environment.items()]
    assert f": {command}" in output_of("env", f"--chdir={tmp_path}", *told, SCRIPTS / script, *words)


def test_apptainer_runs_all_python_in_the_image(submit, tmp_path):
    text = 'echo "apptainer $*" | sed "s/ -m dmt_ds.*//"; until [[ $1 == *.sif ]]; do shift; done; shift; exec "$@"'
    path = program(tmp_path, "apptainer", text.replace("; until", " >&2; until", 1))
    container = {"DMT_DS_CONTAINER": "my.sif", "DMT_DS_CONTAINER_RUNTIME": "apptainer", "DMT_DS_MOUNTS": "/data"}
    job = submit("pretrain_vit_t.sh", **path, **container).ends_as("COMPLETED")
    calls = {line for line in job.text().splitlines() if line.startswith("apptainer ")}
    assert calls == {f"apptainer exec --nv --bind {ROOT},{tmp_path},/data --pwd {tmp_path} my.sif {tmp_path}/python"}
    assert job.text().count("apptainer exec") == 1 + 1 + 4


def test_pyxis_gets_its_options_from_srun_for_each_step(submit, tmp_path):
    text = """words=()
for word in "$@"; do if [[ $word == --container-* ]]; then echo "pyxis $word" >&2; else words+=("$word"); fi; done
exec /usr/bin/srun "${words[@]}\""""
    path = program(tmp_path, "srun", text)
    job = submit("pretrain_vit_t.sh", DMT_DS_CONTAINER="r.io#me:1", DMT_DS_MOUNTS="/data:/d", **path)
    options = [line for line in job.ends_as("COMPLETED").text().splitlines() if line.startswith("pyxis ")]
    assert options == 3 * [
        "pyxis --container-image=r.io#me:1",
        f"pyxis --container-workdir={tmp_path}",
        f"pyxis --container-mounts={ROOT}:{ROOT},{tmp_path}:{tmp_path},/data:/d",
    ]


def test_a_checkout_is_found_from_any_folder(submit, tmp_path):
    assert ROOT not in tmp_path.parents
    assert "finished" in submit("pretrain_vit_t.sh").ends_as("COMPLETED").text()

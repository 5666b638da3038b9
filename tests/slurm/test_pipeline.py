"""What each job of a chain is given, what is refused before one is submitted. `sbatch` is a stand-in: no cluster."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.slurm_cluster import SCRIPTS, program

JOBS = {
    "pretrain_vit_s.sh": "distil", "knn.sh": "knn", "finetune_imagenet.sh": "finetune", "segment_ade20k.sh": "segment",
    "detect_coco.sh": "detect",
}  # fmt: skip


@dataclass
class Chain:
    """What became of `slurm/pipeline.sh vit_s WORDS...`.

    Attributes:
        options: of sbatch, by job.
        words: behind the script, by job.
    """

    code: int
    errors: list[str]
    options: dict[str, list[str]]
    words: dict[str, list[str]]


@pytest.fixture
def pipeline(tmp_path: Path) -> Callable[..., Chain]:
    """Runs it with a number for each job that comes after the one before."""
    path = program(tmp_path, "sbatch", "printf '%s\\n' \"$*\" >>asked; echo $((100 + $(wc -l <asked)))")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "MLFLOW_", "DMT_DS_"))}

    def pipeline(words: str, **environment: str) -> Chain:
        command = [SCRIPTS / "pipeline.sh", "vit_s", *words.split()]
        known = {**plain, **path, "DMT_DS_SITE": "/nothing", **environment}
        done = subprocess.run(command, env=known, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        chain = Chain(done.returncode, done.stderr.splitlines(), {}, {})
        asked = tmp_path / "asked"
        for line in asked.read_text().splitlines() if asked.exists() else ():
            options, words = line.split(f" {SCRIPTS}/")
            script, *given = words.split()
            chain.options[JOBS[script]] = options.split()[1:]
            chain.words[JOBS[script]] = given
        return chain

    return pipeline


def chained(number: int) -> list[str]:
    return [f"--dependency=afterok:{number}", "--kill-on-invalid-dep=yes"]


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_its_header_go_through(pipeline, number):
    lines = (SCRIPTS / "pipeline.sh").read_text().splitlines()
    examples = [line.partition("vit_s ")[2] for line in lines if line.startswith("#   slurm/pipeline.sh ")]
    chain = pipeline(examples[number])
    assert (chain.code, chain.errors) == (0, [])
    assert list(chain.options) == [["distil", "knn", "finetune", "segment"], ["distil", "knn", "finetune"]][number]


def test_how_many_nodes_is_of_the_distillation_what_a_node_gives_of_all_that_train_and_all_else_of_each(pipeline):
    nodes = ["--ntasks-per-node=4", "--gpus-per-node=4", "--mem=1G", "--time=9", "--exclusive"]
    of_all = ["--chdir=/s", "--clusters=b", "--mail-user=me"]
    chain = pipeline(" ".join(["finetune --nodes=2", *nodes, "--begin=now --dependency=afterok:9", *of_all]))
    assert chain.options == {
        "distil": [*of_all, *nodes, "--nodes=2", "--begin=now", "--dependency=afterok:9"],
        "knn": [*of_all, *chained(101)],
        "finetune": [*of_all, *nodes, *chained(102)],
    }


def test_what_stands_when_a_later_job_is_not_taken_is_named_with_how_to_take_it_back(pipeline, tmp_path):
    refused = "sbatch: error: Requested node configuration is not available"
    program(
        tmp_path,
        "sbatch",
        f"case $* in *finetune_imagenet*) echo {refused!r} >&2; exit 1; esac; printf '%s\\n' \"$*\" >>asked; "
        "echo $((100 + $(wc -l <asked)))",
    )
    chain = pipeline("finetune")
    assert (chain.code, list(chain.options)) == (1, ["distil", "knn"])
    told = "pipeline: error: finetune: not submitted; to cancel what was submitted: scancel 101 102"
    assert chain.errors == [refused, told]


def test_a_job_has_options_and_words_of_its_own(pipeline):
    chain = pipeline(
        "detect=/coco all:--gpus-per-node=0 knn:--mem=1G finetune,detect:--nodes=2 --gpus-per-node=4 finetune "
        "finetune:train.micro_batch_size=64 detect:train.micro_batch_size=1 knn:knn.k=5 seed=3"
    )
    assert (chain.code, chain.errors) == (0, [])
    assert chain.options == {
        "distil": ["--gpus-per-node=0", "--gpus-per-node=4"],
        "knn": ["--gpus-per-node=0", "--mem=1G", *chained(101)],
        "finetune": ["--gpus-per-node=0", "--gpus-per-node=4", "--nodes=2", *chained(102)],
        "detect": ["--gpus-per-node=0", "--gpus-per-node=4", "--nodes=2", *chained(103)],  # the last counts
    }
    described = chain.words.pop("distil")
    assert described[0] == "seed=3"
    assert chain.words == {
        job: ["--of-run", "-c", "vit_small", *described, "--", *own]
        for job, own in {
            "knn": ["knn.k=5"],
            "finetune": ["train.micro_batch_size=64"],
            "detect": ["data.path=/coco", "train.micro_batch_size=1"],
        }.items()
    }


def test_batches_and_settings_that_a_job_would_end_with_are_told_before_any_is_submitted(pipeline):
    chain = pipeline("finetune segment=/ade detect=/coco finetune,segment:--nodes=2 --nodes=3 x=1")
    assert (chain.code, chain.options) == (2, {})
    distil, finetune, segment = chain.errors
    assert distil.startswith("pipeline: error: distil: command line: x: unknown key. ")
    assert finetune == (
        "pipeline: error: finetune: train.global_batch_size: 1024 is not divisible by micro_batch_size 128 x 16 ranks "
        "= 2048; nearest: 2048; or finetune:train.micro_batch_size=64"
    )
    assert segment.startswith("pipeline: error: segment: train.global_batch_size: 16 is not divisible by")
    (line,) = pipeline("--nodes=3").errors
    assert "pipeline: error: distil: " in line and "x 24 ranks" in line
    assert pipeline("--nodes=2-3").code == 0  # how many there will be is not known


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("finetune:--nodes=2", "finetune:--nodes=2: this chain has no such job; add the word finetune"),
        ("finetune segment:seed=1", "segment:seed=1: this chain has no such job; add segment=FOLDER"),
        ("fintune:--nodes=2", "no job fintune; the jobs are distil, knn, finetune, segment, detect, and all"),
        ("distil:seed=1", "distil:seed=1: remove distil: because settings of the run apply to all jobs"),
        ("all:seed=1", "all:seed=1: remove all: because settings of the run apply to all jobs"),
        ("knn:--dependency=x", "each job waits for the previous one; only distil can wait for another"),
        ("--array=0-3", "--array=0-3: a chain has one run; submit one chain per run"),
    ],
)
def test_what_has_no_job_to_go_to_is_refused(pipeline, words, said):
    chain = pipeline(words)
    assert (chain.code, chain.options) == (2, {})
    (line,) = chain.errors
    assert line.startswith("pipeline: error: ") and said in line


def test_where_dmt_ds_does_not_run_or_must_not_look_a_chain_is_submitted_all_the_same(pipeline, tmp_path):
    program(tmp_path, "broken", "echo ModuleNotFoundError >&2; exit 1")
    chain = pipeline("finetune --nodes=3", DMT_DS_PYTHON=str(tmp_path / "broken"))
    assert chain.code == 0 and list(chain.options) == ["distil", "knn", "finetune"]
    warning = "pipeline: warning: {}: not checked, because dmt-ds does not run here: ModuleNotFoundError".format
    assert chain.errors == [warning("distil"), warning("finetune")]
    (tmp_path / "site.sh").write_text("DMT_DS_DOCTOR=0; srun_options+=(--label)\n")
    chain = pipeline("--nodes=3", DMT_DS_SITE=str(tmp_path / "site.sh"))
    assert (chain.code, chain.errors) == (0, [])

"""Ranks from torchrun, SLURM or nothing."""

import pytest
import torch

from dmt_ds.engine.dist import launch_environment, local_world_size, slurm_tasks_of_nodes, why_apart
from dmt_ds.engine.ranks.devices import local_device, unseen_gpus, unused_gpus
from dmt_ds.errors import LaunchError

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_ID": "123456",
    "MASTER_ADDR": "n1",
}
# What the shell of `sbatch --nodes=2 --ntasks-per-node=2` has, where no srun has started anything yet.
BATCH_SHELL = {
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_ID": "1",
}


def test_torchrun_variables_are_taken_as_they_are():
    assert launch_environment({**TORCHRUN, "HOME": "/root"}) == TORCHRUN


@pytest.mark.parametrize(
    ("gpus", "count"),
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, "8 GPUs are"),
        ({"SLURM_STEP_GPUS": "0"}, "1 GPU is"),
        ({"SLURM_STEP_GPUS": "2,3"}, "2 GPUs are"),
        ({"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,1"}, "8 GPUs are"),
    ],
)
def test_gpus_of_a_job_that_torch_does_not_see_stop_it(monkeypatch, gpus, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in gpus.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError) as error:
        local_device(TORCHRUN)
    assert str(error.value).startswith(f"{count} allocated but torch sees none: driver or wheel (torch ")
    assert "is built for CUDA 12.8)" in str(error.value)


@pytest.mark.parametrize(
    "environ",
    [{}, {"SLURM_GPUS_ON_NODE": "0"}, {"SLURM_GPUS_ON_NODE": "", "SLURM_STEP_GPUS": ""}]
    + [{"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": hidden} for hidden in ("", "-1")],
)
def test_a_job_without_gpus_or_with_hidden_ones_runs_on_the_cpu(monkeypatch, environ):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert unseen_gpus(environ) is None


def test_gpus_of_the_driver_that_torch_does_not_see_are_told_outside_of_slurm(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert unused_gpus({}, tmp_path / "no driver") is None
    assert unused_gpus({}, tmp_path) is None, "a driver without GPUs"
    (tmp_path / "0000:01:00.0").mkdir()
    told = unused_gpus({}, tmp_path)
    assert told and told.startswith("this machine has GPUs but torch sees none, so the CPU is used")
    assert unused_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) is None, "hidden on purpose"
    assert unused_gpus({"SLURM_JOB_ID": "1"}, tmp_path) is None, "not asked for"


def test_a_half_set_launcher_environment_names_what_is_missing():
    with pytest.raises(LaunchError, match="LOCAL_RANK, MASTER_PORT"):
        launch_environment({k: v for k, v in TORCHRUN.items() if k not in ("LOCAL_RANK", "MASTER_PORT")})


def test_slurm_tasks_become_ranks_and_the_port_comes_from_the_job():
    assert launch_environment(STEP) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": str(10000 + 123456 % 20000),
    }


def test_slurm_tasks_without_an_address_are_told_how_to_get_one():
    with pytest.raises(LaunchError, match="scontrol show hostnames"):
        launch_environment({k: v for k, v in STEP.items() if k != "MASTER_ADDR"})


def test_a_step_of_one_task_is_a_world_of_one():
    assert launch_environment({**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"})["WORLD_SIZE"] == "1"


def test_a_program_in_the_shell_of_a_batch_job_waits_for_nobody():
    assert launch_environment(BATCH_SHELL)["WORLD_SIZE"] == "1"


def test_fewer_tasks_in_a_step_than_in_the_job_are_the_world():
    assert launch_environment({**STEP, "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "6"})["WORLD_SIZE"] == "6"


@pytest.mark.parametrize(
    ("text", "nodes"), [("2(x2)", [2, 2]), ("8", [8]), ("4(x2),2", [4, 4, 2]), ("2,1", [2, 1]), ("", []), ("2(x", [])]
)
def test_tasks_of_nodes_are_read_as_slurm_writes_them(text, nodes):
    assert slurm_tasks_of_nodes(text) == nodes


@pytest.mark.parametrize(("text", "ranks"), [("4(x2)", 4), ("4,4,2", 2), ("2,1", 1), ("8", 8)])
def test_ranks_on_a_node_come_from_the_step_and_are_the_same_on_all_ranks(monkeypatch, text, ranks):
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**STEP, "SLURM_STEP_TASKS_PER_NODE": text}.items():
        monkeypatch.setenv(name, value)
    assert local_world_size() == ranks


def test_nothing_set_is_one_process_on_a_free_port():
    first, second = launch_environment({}), launch_environment({})
    assert first["WORLD_SIZE"] == "1" and first["MASTER_ADDR"] == "127.0.0.1"
    assert 1024 < int(first["MASTER_PORT"]) < 65536 and 1024 < int(second["MASTER_PORT"]) < 65536


def test_nccls_reason_is_not_cut_off_with_the_lines_before_it():
    error = RuntimeError(
        "NCCL error in: /torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage (run with NCCL_DEBUG=WARN)\n"
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
        "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"
    )
    told = why_apart(TORCHRUN, error)
    assert told.startswith(
        "rank 3: no process group at n1:29500: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000. "
    )
    assert "MASTER_PORT" not in told
    assert "MASTER_PORT" in why_apart(TORCHRUN, RuntimeError("The server socket has failed to listen\nmore"))

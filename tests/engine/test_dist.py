"""Ranks from torchrun, SLURM or nothing."""

import pytest

from dmt_ds.engine.dist import launch_environment
from dmt_ds.errors import LaunchError

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "123456", "MASTER_ADDR": "n1"}


def test_torchrun_variables_are_taken_as_they_are():
    assert launch_environment({**TORCHRUN, "HOME": "/root"}) == TORCHRUN


def test_a_half_set_launcher_environment_names_what_is_missing():
    with pytest.raises(LaunchError, match="LOCAL_RANK, MASTER_PORT"):
        launch_environment({k: v for k, v in TORCHRUN.items() if k not in ("LOCAL_RANK", "MASTER_PORT")})


def test_slurm_tasks_become_ranks_and_the_port_comes_from_the_job():
    assert launch_environment(SLURM) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": str(10000 + 123456 % 20000),
    }


def test_slurm_tasks_without_an_address_are_told_how_to_get_one():
    with pytest.raises(LaunchError, match="scontrol show hostnames"):
        launch_environment({k: v for k, v in SLURM.items() if k != "MASTER_ADDR"})


def test_a_lone_process_inside_a_slurm_allocation_is_a_world_of_one():
    assert launch_environment({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"})["WORLD_SIZE"] == "1"


def test_nothing_set_is_one_process_on_a_free_port():
    first, second = launch_environment({}), launch_environment({})
    assert first["WORLD_SIZE"] == "1" and first["MASTER_ADDR"] == "127.0.0.1"
    assert 1024 < int(first["MASTER_PORT"]) < 65536 and 1024 < int(second["MASTER_PORT"]) < 65536

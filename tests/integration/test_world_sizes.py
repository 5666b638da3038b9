"""A run is a function of its recipe, not of the number of processes or restarts: real engines, real processes."""

import json
import socket
from pathlib import Path

import pytest
import torch

from dmt_ds.config.schema import StudentConfig
from dmt_ds.models.vit import build_vit
from tests import processes, tiny_run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process that was never stopped, float32."""
    folder = tmp_path_factory.mktemp("unbroken")
    processes.run(tiny_run.pretrain(tiny_run.write_recipe(folder)))
    return folder / "run"


def test_an_unbroken_run_logs_each_step_once_and_its_loss_falls(unbroken):
    curve = tiny_run.losses(unbroken)
    assert list(curve) == list(range(1, tiny_run.NUM_STEPS + 1))
    assert curve[tiny_run.NUM_STEPS] < 0.8 * curve[1]


def test_two_processes_give_the_same_losses_in_float32(unbroken, tmp_path):
    processes.run(tiny_run.pretrain(tiny_run.write_recipe(tmp_path)), processes=2)
    assert tiny_run.largest_difference(tiny_run.losses(tmp_path / "run"), tiny_run.losses(unbroken)) < 1e-5
    assert tiny_run.backbone_difference(tmp_path / "run", unbroken) < 1e-4


@pytest.mark.parametrize("launcher", ["torch", "deepspeed"])
def test_the_launchers_of_torch_and_of_deepspeed_start_the_same_run(unbroken, tmp_path, launcher):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _, *words = tiny_run.pretrain(tiny_run.write_recipe(tmp_path))
    to_module = ["--no_local_rank", "--module"]
    launch = {
        "torch": ["-m", "torch.distributed.run", f"--master_port={port}", "--nproc_per_node=2", "-m"],
        "deepspeed": ["-m", "deepspeed.launcher.runner", f"--master_port={port}", "--num_gpus=2", *to_module],
    }
    processes.run([*launch[launcher], *words])
    assert "= 2 ranks x" in (tmp_path / "run" / "train.log").read_text()
    assert tiny_run.largest_difference(tiny_run.losses(tmp_path / "run"), tiny_run.losses(unbroken)) < 1e-5


def test_two_processes_give_the_same_losses_in_bf16(tmp_path):
    curves = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe = tiny_run.write_recipe(
            folder, train={"deepspeed": "student_zero2_bf16"}, teachers={"deepspeed": "teacher_zero3_inference"}
        )
        text = recipe.read_text()
        assert "student_zero2_bf16" in text
        processes.run(tiny_run.pretrain(recipe), processes=number)
        curves.append(tiny_run.losses(folder / "run"))
    assert tiny_run.largest_difference(*curves) < 1e-3


def test_one_two_one_processes_by_resume_equal_the_unbroken_run(unbroken, tmp_path):
    recipe = tiny_run.write_recipe(tmp_path, train={"save_every_steps": 3})
    for number, last_step in ((1, 3), (2, 6), (1, tiny_run.NUM_STEPS)):
        stop = () if last_step == tiny_run.NUM_STEPS else (f"train.stop_after_step={last_step}",)
        processes.run(tiny_run.pretrain(recipe, *stop), processes=number)
    assert tiny_run.largest_difference(tiny_run.losses(tmp_path / "run"), tiny_run.losses(unbroken)) < 1e-6
    # Weights are looser than losses: Adam's first updates turn rounding of small gradients into parts of a step (2e-3).
    assert tiny_run.backbone_difference(tmp_path / "run", unbroken) < 1e-4


@pytest.mark.parametrize(
    "own",
    [
        {},
        {
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        },
    ],
    ids=["stage 0", "offloaded optimizer"],
)
def test_a_json_of_ones_own_gives_the_same_run_through_other_numbers_of_processes(unbroken, tmp_path, own):
    (tmp_path / "own.json").write_text(json.dumps(own))
    recipe = tiny_run.write_recipe(tmp_path, train={"save_every_steps": 4, "deepspeed": str(tmp_path / "own.json")})
    processes.run(tiny_run.pretrain(recipe, "train.stop_after_step=4"), processes=2)
    processes.run(tiny_run.pretrain(recipe))
    for curve in ("train/loss", "train/grad_norm"):
        curves = [tiny_run.losses(run, curve) for run in (tmp_path / "run", unbroken)]
        assert tiny_run.largest_difference(*curves) < 1e-4
    assert tiny_run.backbone_difference(tmp_path / "run", unbroken) < 1e-4


def test_a_checkpoint_holds_the_student_and_nothing_of_a_teacher(unbroken):
    folder = unbroken / "checkpoints" / f"step{tiny_run.NUM_STEPS:08d}"
    state = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)
    task_state = torch.load(folder / "task_state.pt", weights_only=True)
    vit = build_vit(StudentConfig(arch="vit_tiny", patch_size=4, embed_dim=24, depth=2, num_heads=3), 16)
    trained = {f"vit.{name}" for name, p in vit.named_parameters() if p.requires_grad}
    assert set(state["module"]) == trained | {"adapters.fused.weight", "adapters.fused.bias"}
    assert set(task_state["untrained"]) == {"vit.pos_embed"}
    assert all(
        key.startswith(("diagnostics.", "fusion.")) and t.numel() <= 2 * 48 for key, t in task_state["task"].items()
    )
    # Three float32 copies (master, two moments) and the weights themselves; the encoder once more.
    parameters = sum(p.numel() for p in vit.parameters()) + 24 * 48 + 48
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 4 * parameters * 5 + 200_000


def test_a_resume_with_as_many_processes_is_bit_equal(unbroken, tmp_path):
    recipe = tiny_run.write_recipe(tmp_path)
    processes.run(tiny_run.pretrain(recipe, "train.stop_after_step=4"))
    processes.run(tiny_run.pretrain(recipe))
    assert tiny_run.losses(tmp_path / "run") == tiny_run.losses(unbroken)
    assert tiny_run.backbone_difference(tmp_path / "run", unbroken) == 0.0

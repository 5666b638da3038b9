"""A distillation so small that whole runs fit in a test: digits, random teachers of width 48, a student of width 24."""

import json
import time
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from dmt_ds.config.schema import StudentConfig
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.vit import build_vit

TEACHER = StudentConfig(arch="vit_tiny", patch_size=4, embed_dim=48, depth=2, num_heads=3, drop_path=0.0)
NUM_STEPS = 8


def make_teacher(folder: Path, seed: int, **changes: object) -> Path:
    """A run folder with a random encoder in it; `changes` are of its section."""
    torch.manual_seed(seed)
    section = TEACHER.model_copy(update=changes)
    vit = build_vit(section, 16)
    save_backbone(folder / "backbone", vit.state_dict(), section, 16, provenance={"task": "mae", "teachers": {}})
    return folder


def write_recipe(folder: Path, **changes: object) -> Path:
    """A recipe for two such teachers, made beside it; `changes` are top-level sections to merge in."""
    teachers = {name: {"source": str(make_teacher(folder / name, seed))} for seed, name in enumerate(("red", "blue"))}
    recipe: dict[str, object] = {
        "task": "dmt",
        "name": "tiny",
        "output_dir": str(folder / "run"),
        "data": {"source": "digits", "image_size": 16, "horizontal_flip": 0, "num_workers": 0},
        "teachers": {"models": teachers, "deepspeed": "teacher_zero3_inference_fp32"},
        "student": {"arch": "vit_tiny", "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "drop_path": 0.2},
        "optim": {"base_lr": 1.6e-2, "warmup_steps": 2, "clip_grad_norm": 1.0},
        "train": {
            "steps": NUM_STEPS,
            "global_batch_size": 32,
            "micro_batch_size": 8,
            "log_every_steps": 1,
            "save_every_steps": 100,
            "deepspeed": "student_zero2_fp32",
        },
        "tracking": {"enabled": False, "pictures": False},
    }
    for section, values in changes.items():
        old = recipe.get(section)
        recipe[section] = {**old, **values} if isinstance(old, dict) and isinstance(values, dict) else values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def pretrain(recipe: Path, *overrides: str) -> list[str]:
    """Arguments for `tests.processes`."""
    return ["-m", "dmt_ds", "pretrain", "-c", str(recipe), *overrides]


def losses(run: Path, name: str = "train/loss") -> dict[int, float]:
    """Step -> loss, as the run's metrics.jsonl has it; a repeated step must have the same value."""
    found: dict[int, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        point = json.loads(line)
        if name in point["metrics"]:
            found[point["step"]] = point["metrics"][name]
    return found


def largest_difference(a: dict[int, float], b: dict[int, float]) -> float:
    """Largest relative difference of two curves that have the same steps."""
    assert a.keys() == b.keys(), (sorted(a), sorted(b))
    return max(abs(a[step] - b[step]) / abs(b[step]) for step in a)


def backbone_difference(a: Path, b: Path) -> float:
    """Largest difference of two runs' published weights, without the keys' biases.

    A key's bias shifts a whole row of scores, which softmax does not feel: its gradient is rounding, and Adam follows.
    """
    first, second = (load_file(run / "backbone" / "model.safetensors") for run in (a, b))
    assert first.keys() == second.keys()
    differences = {key: (first[key] - second[key]).abs() for key in first}
    for key in differences:
        if key.endswith("attn.qkv.bias"):
            queries, _, values = differences[key].chunk(3)
            differences[key] = torch.cat([queries, values])
    return max(difference.max().item() for difference in differences.values())


def wait_for_step(run: Path, step: int, seconds: float = 120) -> None:
    """Until a run that is under way has logged the step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and max(losses(run), default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached in {seconds} s")

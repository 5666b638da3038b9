"""A suite so small that it runs in a test: digits, one teacher, two variants, two seeds, a grid of two."""

from pathlib import Path

import yaml

RUN = {
    "data": {"source": "digits", "image_size": 16, "horizontal_flip": 0, "num_workers": 0, "max_train_images": 200},
    "student": {"arch": "vit_tiny", "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3, "drop_path": 0.0},
    "optim": {"base_lr": 1.6e-2, "warmup_steps": 1},
    "train": {
        "steps": 3,
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "log_every_steps": 1,
        "save_every_steps": 100,
        "deepspeed": "student_zero2_fp32",
    },
    "tracking": {"system_metrics_seconds": 0, "pictures": False},
}
MAE = {"decoder_embed_dim": 24, "decoder_depth": 1, "decoder_num_heads": 2}
TEACHERS = {"models": {"mae": {"source": "set by the suite"}}, "deepspeed": "teacher_zero3_inference_fp32"}


def write_suite(folder: Path, **changes: object) -> Path:
    """The suite's file, its recipes beside it; `changes` replace top-level keys, None takes one out."""
    folder.mkdir(parents=True, exist_ok=True)
    recipes = {
        "maker.yaml": {"task": "mae", "name": "maker", "mae": MAE, **RUN},
        "student.yaml": {"task": "dmt", "name": "student", "teachers": TEACHERS, **RUN},
    }
    suite: dict[str, object] = {
        "name": "tiny",
        "recipe": "student.yaml",
        "seeds": [0, 1],
        "set": {"teachers.models.mae.source": "{teachers}/mae"},
        "teachers": {"mae": {"recipe": "maker.yaml"}},
        "tune": {"key": "optim.base_lr", "values": [1e-3, 1e-2], "seed": 100, "set": {"train.steps": 2}},
        "variants": {
            "dmt": {"title": "DMT: one teacher", "paper": "42.0"},
            "untrained": {"set": {"train.steps": 0}, "tune": False},
        },
        "paper": {"metric": "nothing"},
        **changes,
    }
    suite = {key: value for key, value in suite.items() if value is not None}
    for name, content in {**recipes, "suite.yaml": suite}.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "suite.yaml"


def command(suite: Path, *arguments: str) -> list[str]:
    """Arguments for `tests.processes`; the runs go to `out` beside the suite."""
    return ["-m", "dmt_ds", "suite", str(suite), "-o", str(suite.parent / "out"), *arguments]

"""A suite so small that it runs in a test: digits, one teacher, two variants, two seeds, a grid of two."""

import json
from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from dmt_ds.cli import main
from dmt_ds.commands.suites.suite import open_plan
from dmt_ds.config.load import to_yaml
from dmt_ds.config.suite_plan import SuitePlan
from dmt_ds.config.suite_run import SuiteRun

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


def call(suite: Path, *arguments: str) -> Result:
    """`dmt-ds suite` in this process."""
    return CliRunner().invoke(main, ["suite", str(suite), "-o", str(suite.parent / "out"), *arguments])


def plan_of(suite: Path) -> SuitePlan:
    """Its runs, as `call` and `command` have them."""
    return open_plan(str(suite), [], suite.parent / "out")


def pretend_finished(run: SuiteRun, **scores: float) -> None:
    """What a finished run leaves, without its weights."""
    run.folder.mkdir(parents=True)
    (run.folder / "DONE").write_text("3\n")
    (run.folder / "config.yaml").write_text(to_yaml(run.config))
    found = {f"eval/{name}": score for name, score in ({"knn_top1": 0.25, "select_knn_top1": 0.5} | scores).items()}
    (run.folder / "evaluation.json").write_text(json.dumps({"scores": found}))

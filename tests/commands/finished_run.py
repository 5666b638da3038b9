"""A run's folder after its last step, for tests of what is done with it."""

import json
from pathlib import Path

import torch
from click.testing import CliRunner, Result

from dmt_ds.cli import main
from dmt_ds.config.load import load_config, to_yaml
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.vit import build_vit
from dmt_ds.run_files import DONE
from tests.models import tiny

STEP = 40
MAE = {"source": "/home/someone/weights/mae_vit_b.pth", "licence": "CC-BY-NC-4.0", "sha256": "ab" * 32}
IBOT = {"source": "timm:vit_base_patch16_224.ibot", "licence": "Apache-2.0", "sha256": "cd" * 32}


def make_run(folder: Path, *overrides: str, teachers: dict[str, object] | None = None, name: str = "my run") -> Path:
    """What a finished distillation leaves."""
    settings = {
        "data.path": "/home/someone/photos",
        "data.source": "folder",
        "data.image_size": tiny.IMAGE_SIZE,
        "student.patch_size": tiny.PATCH_SIZE,
        "student.embed_dim": tiny.WIDTH,
        "student.depth": 2,
        "student.num_heads": tiny.HEADS,
        "teachers.models.mae.source": MAE["source"],
        "tracking.uri": "http://store-host:5000",
    }
    settings |= dict(override.split("=", 1) for override in overrides)
    config = load_config(None, ("task=dmt", *(f"{key}={value}" for key, value in settings.items())))
    told = {"mae": MAE, "ibot": IBOT} if teachers is None else teachers
    provenance = {"task": "dmt", "name": name, "step": STEP, "images_seen": 1280, "teachers": told}
    torch.manual_seed(0)
    vit = build_vit(config.student, tiny.IMAGE_SIZE)
    save_backbone(folder / "backbone", vit.state_dict(), config.student, tiny.IMAGE_SIZE, provenance=provenance)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.15.0", "hostname": "private-host"}))
    (folder / DONE).write_text(f"{STEP}\n")
    return folder


def export(*arguments: object) -> Result:
    """`dmt-ds export` in this process."""
    return CliRunner().invoke(main, ["export", *map(str, arguments)])

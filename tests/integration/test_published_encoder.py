"""What a run publishes says where its weights come from, and loads without this project."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dmt_ds.config.load import load_config
from dmt_ds.config.schema import StudentConfig
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.vit import build_vit
from tests import processes, tiny_run

pytestmark = pytest.mark.distributed

STUDENT = StudentConfig(arch="vit_tiny", patch_size=4, embed_dim=24, depth=2, num_heads=3, drop_path=0.0)
LOAD = """
import sys, timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
print(list(model.forward_features(torch.zeros(1, 3, 16, 16)).shape), "dmt_ds" in sys.modules)
"""


def test_a_student_started_from_bound_weights_carries_their_licence_and_plain_timm_loads_it(tmp_path):
    torch.manual_seed(5)
    origin = {"task": "mae", "teachers": {"old": {"licence": "CC-BY-NC-4.0"}}}
    save_backbone(tmp_path / "origin" / "backbone", build_vit(STUDENT, 16).state_dict(), STUDENT, 16, provenance=origin)
    recipe = tiny_run.write_recipe(tmp_path, student={"init_from": str(tmp_path / "origin")}, train={"steps": 1})
    processes.run(tiny_run.pretrain(recipe))
    backbone = tmp_path / "run" / "backbone"
    config = json.loads((backbone / "config.json").read_text())
    assert config["dmt_ds"]["teachers"]["init_from"]["licence"] == "CC-BY-NC-4.0"
    assert config["pretrained_cfg"]["license"].lower() == "cc-by-nc-4.0"
    loaded = processes.run(["-c", LOAD, str(backbone)], cwd=tmp_path, PYTHONPATH="")
    assert loaded.stdout.split("\n")[0] == "[1, 17, 24] False"


def test_a_run_of_no_steps_publishes_the_encoder_as_it_starts(tmp_path):
    recipe = tiny_run.write_recipe(tmp_path)
    processes.run(tiny_run.pretrain(recipe, "train.steps=0", "seed=7"))
    torch.manual_seed(7)
    section = load_config(str(recipe)).student
    fresh = build_vit(section, 16).state_dict()
    published = load_file(tmp_path / "run" / "backbone" / "model.safetensors")
    assert published.keys() == fresh.keys()
    assert all(torch.equal(published[key], fresh[key]) for key in fresh)
    again = processes.run(tiny_run.pretrain(recipe, "train.steps=0", "seed=7"))
    assert "finished" in again.stderr

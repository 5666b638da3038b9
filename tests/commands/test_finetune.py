"""What `dmt-ds finetune` makes of an encoder: its shape and pixels, the data of its run, and the way back to it."""

from pathlib import Path

import pytest
import torch

from dmt_ds.commands.run_folder import run_of
from dmt_ds.commands.training.finetune import resolve
from dmt_ds.commands.training.record import origin_tags, stage_of
from dmt_ds.commands.training.tasks import build_task
from dmt_ds.config.load import load_config, to_yaml
from dmt_ds.config.schema import StudentConfig
from dmt_ds.errors import ConfigError, WeightsError
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.vit import build_vit

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SHAPE = StudentConfig(patch_size=4, embed_dim=48, depth=2, num_heads=3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished distillation, as its folder shows it."""
    folder = tmp_path / "runs" / "vit_x-seed1"
    settings = ["task=mae", "name=vit_x", "data.source=folder", "data.path=/my photos/it's", "data.image_size=16"]
    config = load_config(None, [*settings, "data.num_workers=3", "student.patch_size=4", "tracking.experiment=mine"])
    for place in (folder, folder / "checkpoints" / "step00000008"):
        save_backbone(
            place / "backbone", build_vit(SHAPE, 16).state_dict(), SHAPE, 16, mean=MEAN, std=STD,
            provenance={"teachers": {}},
        )  # fmt: skip
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "tracking").mkdir()
    (folder / "tracking" / "mlflow_run_id").write_text("abc123\n")
    return folder


def test_the_student_is_the_encoder_on_the_images_of_its_run(run: Path) -> None:
    config = resolve(str(run), None, ())
    assert (config.task, config.student.init_from) == ("classify", str(run))
    shape = config.student
    assert (shape.patch_size, shape.embed_dim, shape.depth, shape.num_heads) == (4, 48, 2, 3)
    assert (config.data.image_size, config.augment.mean, config.augment.std) == (16, MEAN, STD)
    assert (config.data.source, config.data.path, config.data.num_workers) == ("folder", "/my photos/it's", 3)
    assert config.tracking.experiment == "mine"
    assert (config.name, config.output_dir) == ("vit_x_finetune", "runs/vit_x_finetune")
    assert config.optim.layer_decay == 0.8  # finetune_vit_tiny's
    assert stage_of(config) == "finetune"


def test_what_is_made_of_a_suites_run_does_not_join_the_suite(run: Path) -> None:
    recorded = load_config(str(run / "config.yaml"))
    tracking = recorded.tracking.model_copy(update={"tags": {"suite": "mine", "variant": "x"}, "uri": "sqlite:///x.db"})
    (run / "config.yaml").write_text(to_yaml(recorded.model_copy(update={"tracking": tracking})))
    section = resolve(str(run), None, ()).tracking
    assert (section.uri, section.experiment, section.parent, section.tags) == ("sqlite:///x.db", "dmt_ds", None, {})


def test_a_recipe_keeps_its_own_data_and_the_command_line_wins(run: Path) -> None:
    config, of_recipe = (
        resolve(str(run), "linear_probe", ("data.path=there", "train.epochs=3", "name=mine")),
        load_config("linear_probe"),
    )
    assert (config.data.path, config.data.num_workers, config.train.epochs) == ("there", of_recipe.data.num_workers, 3)
    assert (config.name, config.student.embed_dim) == ("mine", 48)
    assert config.classify.frozen and config.optim.name == "sgd" and stage_of(config) == "linear"
    assert resolve(str(run), "linear_probe", ()).name == "vit_x_linear"


@pytest.mark.parametrize(
    ("width", "recipe"),
    [(96, "finetune_vit_tiny"), (192, "finetune_vit_tiny"), (384, "finetune_vit_small"), (576, "finetune_vit_base")],
)
def test_the_recipe_follows_the_width(tmp_path: Path, width: int, recipe: str) -> None:
    shape = StudentConfig(embed_dim=width, depth=1, num_heads=3)
    save_backbone(tmp_path, build_vit(shape, 32).state_dict(), shape, 32, provenance={"teachers": {}})
    config, of_recipe = resolve(str(tmp_path), None, ()), load_config(recipe)
    assert (config.train, config.optim, config.classify) == (of_recipe.train, of_recipe.optim, of_recipe.classify)
    assert config.student.arch == of_recipe.student.arch


def test_an_official_file_is_fine_tuned_like_a_run(tmp_path: Path) -> None:
    file = tmp_path / "my teacher (v2).pth"
    vit = build_vit(StudentConfig(patch_size=4, embed_dim=64, depth=2, num_heads=1), 16)
    torch.save({"teacher": {f"backbone.{key}": value for key, value in vit.state_dict().items()}}, file)
    config = resolve(str(file), "finetune_vit_tiny", ())
    assert (config.student.embed_dim, config.data.image_size) == (64, 16)
    assert config.name == "my_teacher_v2_finetune"
    assert origin_tags(str(file)) == {"init_from": str(file)}


def test_the_run_of_a_source_is_found_from_all_that_lies_in_it(run: Path) -> None:
    inside = (
        "",
        "backbone",
        "backbone/model.safetensors",
        "checkpoints/step00000008",
        "checkpoints/step00000008/backbone",
    )
    assert {run_of(str(run / place)) for place in inside} == {run}
    assert run_of(str(run.parent)) is None and run_of("timm:vit_base_patch16_224.mae") is None
    tags = {"init_from": str(run / "backbone"), "init_from.run_name": "vit_x", "init_from.run_id": "abc123"}
    assert origin_tags(str(run / "backbone")) == tags


@pytest.mark.parametrize("ema_decay", [0, 0.9])
def test_layers_are_those_of_what_is_trained_beside_a_running_mean_too(run: Path, ema_decay: float) -> None:
    config = resolve(str(run), None, (f"classify.ema_decay={ema_decay}",))
    built = build_task(config, torch.device("cpu"), ("cat", "dog"))
    assert built.layers is not None and built.layers.keys() == dict(built.task.module.named_parameters()).keys()
    blocks = {name: layer for name, layer in built.layers.items() if name.endswith("qkv.weight")}
    assert blocks == {"vit.blocks.0.attn.qkv.weight": 1, "vit.blocks.1.attn.qkv.weight": 2}
    assert built.layers["vit.pos_embed"] == 0 and built.layers["head.weight"] == 3


def test_what_does_not_fit_is_said(run: Path) -> None:
    with pytest.raises(WeightsError, match="no encoder in it"):
        resolve(str(run.parent), None, ())
    with pytest.raises(
        ConfigError, match=r"optim\.layer_decay 0\.5 is for the tasks classify, segment, detect, not for mae"
    ):
        load_config(None, ["task=mae", "optim.layer_decay=0.5"])
    with pytest.raises(ConfigError, match=r"classify\.frozen trains a head on a given encoder"):
        build_task(load_config("linear_probe"), torch.device("cpu"), ("cat", "dog"))

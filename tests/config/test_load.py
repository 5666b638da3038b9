"""Recipes and overrides become a checked run, or lines that say what to mend."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm  # noqa: F401  torch 2.8 can't import it under a device
import torch
from hypothesis import given, strategies
from pydantic import ValidationError

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.load import (
    RECIPES,
    config_from_yaml,
    find_recipe,
    flatten,
    flatten_tree,
    load_config,
    load_layers,
    to_yaml,
)
from dmt_ds.config.schema import DataConfig, RunConfig
from dmt_ds.config.yaml_text import parse_value, parse_yaml
from dmt_ds.errors import ConfigError
from dmt_ds.methods.ibot import IbotTask

TEACHER = "teachers.models.mae.source=/weights/mae.pth"


def recipe(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def complaints(recipe: str | Path | None, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    return str(caught.value).splitlines()


# Precedence


def test_a_recipe_wins_over_a_default_and_the_command_line_over_both(tmp_path: Path) -> None:
    path = recipe(tmp_path, "task: mae\noptim: {base_lr: 1.0e-3, weight_decay: 0.3}")
    config = load_config(path, ["optim.base_lr=5e-3"])
    assert config.optim.base_lr == 5e-3
    assert config.optim.weight_decay == 0.3
    assert config.optim.betas == (0.9, 0.95)


def test_a_recipe_changes_only_what_its_base_says_otherwise(tmp_path: Path) -> None:
    recipe(tmp_path, "task: mae\nname: a\noptim: {base_lr: 1, weight_decay: 1}", "a.yaml")
    recipe(tmp_path, "base: a\nname: b\noptim: {base_lr: 2}", "b.yaml")
    config = load_config(recipe(tmp_path, "base: b.yaml\noptim: {eps: 3}", "c.yaml"))
    assert (config.name, config.optim.base_lr, config.optim.weight_decay, config.optim.eps) == ("b", 2, 1, 3)


def test_a_recipe_that_was_read_before_is_read_as_it_is_now_and_no_run_has_anothers_settings(tmp_path: Path) -> None:
    recipe(tmp_path, "task: mae\noptim: {betas: [0.9, 0.99]}", "base.yaml")
    path = recipe(tmp_path, "base: base\nname: a")
    assert [load_config(path, given).optim.eps for given in (["optim.eps=3"], [], ["optim.eps=4"])] == [3, 1e-8, 4]
    recipe(tmp_path, "task: mae\noptim: {betas: [0.8, 0.88]}", "base.yaml")
    assert load_config(path).optim.betas == (0.8, 0.88)


@given(strategies.text("aANn0ulLU_/.+-:,#[]{}<~'\"!&*% \n", min_size=1).filter(str.strip))
def test_a_value_is_read_as_a_whole_yaml_document_would_be(text: str) -> None:
    try:
        wanted = parse_yaml(text, "x")
    except ConfigError:
        with pytest.raises(ConfigError, match="not a YAML value"):
            parse_value(text, "x")
    else:
        assert parse_value(text, "x") == wanted


@pytest.mark.parametrize(
    "text", ["null", "Null", "NULL", "~", "nul", "nulls", "1e-3", "yes", "a\n", "/a/b.c", "v1.0+cu"]
)
def test_only_null_is_not_text(text: str) -> None:
    assert parse_value(text, "x") == (None if text.lower() in ("null", "~") else text.strip())


def test_teachers_of_a_recipe_can_be_changed_one_setting_at_a_time() -> None:
    config = load_config("vit_tiny", ["teachers.models.mae.weight=0.5", "teachers.models.dino.source=timm:dino"])
    assert list(config.teachers.models) == ["mae", "moco_v3", "ibot", "dino"]
    assert config.teachers.models["mae"].weight == 0.5
    assert config.teachers.models["mae"].source == "teachers/mae_pretrain_vit_base.pth"


def test_a_section_with_nothing_under_it_changes_nothing(tmp_path: Path) -> None:
    assert load_config(recipe(tmp_path, "task: mae\noptim:\n")).optim == RunConfig(task="mae").optim


# Values


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.base_lr=1e-4", "optim.base_lr", 1e-4),
        ("data.num_workers=3", "data.num_workers", 3),
        ("data.num_workers=auto", "data.num_workers", "auto"),
        ("optim.base_lr=2", "optim.base_lr", 2.0),
        ("augment.mean=[0.5,0.5,0.5]", "augment.mean", [0.5, 0.5, 0.5]),
        ("augment.mean=[5e-1, .5, 0.5]", "augment.mean", [0.5, 0.5, 0.5]),
        ("data.label_column=null", "data.label_column", None),
        ("data.label_column=", "data.label_column", ""),
        ("train.compile=true", "train.compile", True),
        ("name=007", "name", "007"),
        ("tracking.tags.commit=12e4567", "tracking.tags.commit", "12e4567"),
        ("tracking.tags.answer=no", "tracking.tags.answer", "no"),
        ("tracking.tags.at=12:30", "tracking.tags.at", "12:30"),
        ("tracking.tags.formula=a=b", "tracking.tags.formula", "a=b"),
        ("data.train_split=a b/c", "data.train_split", "a b/c"),
        ("optim={base_lr: 3}", "optim.base_lr", 3.0),
        ("teachers.use=[mae]", "teachers.use", ["mae"]),
    ],
)
def test_a_value_is_read_as_its_field_wants_it(override: str, key: str, value: object) -> None:
    assert flatten(load_config(None, [TEACHER, override]))[key] == value


def test_name_and_seed_are_filled_into_the_output_folder() -> None:
    config = load_config(None, [TEACHER, "name=tiny", "seed=3", "output_dir=runs/{name}-{seed}"])
    assert config.output_dir == "runs/tiny-3"


def test_a_section_takes_paths_as_text() -> None:
    config = RunConfig(task="mae", data=DataConfig(path=Path("some/images")), student={"init_from": Path("some.pth")})
    assert (config.data.path, config.student.init_from) == ("some/images", "some.pth")


def test_a_run_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load_config(None, [TEACHER]).seed = 3


# What is wrong


def test_without_teachers_a_recipe_that_has_some_is_the_first_remedy() -> None:
    (line,) = complaints(None)
    assert "task dmt needs a teacher: -c RECIPE, or teachers.models.NAME.source=FILE (`teachers list`)" in line


def test_a_path_on_the_command_line_is_not_passed_over_for_the_digits(tmp_path: Path) -> None:
    unused = "command line: data.path=/photos: is not used by data.source=digits: add data.source=folder, or another"
    assert complaints(None, "task=mae", "data.path=/photos") == [unused]
    assert complaints(recipe(tmp_path, "task: mae"), "data.path=/photos") == [unused]
    assert load_config(None, ["task=mae", "data.path=/photos", "data.source=folder"]).data.path == "/photos"
    assert load_config("vit_tiny", ["data.source=digits"]).data.path, "a recipe's own path is no wish"
    assert load_config("vit_tiny", ["data.source=digits", "data.path=/photos"]).data.path, "both are named"


def test_a_misspelt_key_names_recipe_path_and_the_likely_key(tmp_path: Path) -> None:
    path = recipe(tmp_path, "task: mae\noptim: {wieght_decay: 0.1}")
    assert complaints(path) == [f"{path}: optim.wieght_decay: unknown key. Did you mean 'weight_decay'?"]


def test_a_shipped_recipe_is_named_without_the_place_of_the_installation() -> None:
    (line,) = complaints("vit_small", "train.epochs=abc")
    assert line == "command line: train.epochs=abc: not a number"
    assert find_recipe("vit_small").name == "vit_small.yaml"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("epochs=3", "epochs: unknown key. Did you mean 'train.epochs'?"),
        ("optim.lr=3", "optim.lr: unknown key. Did you mean 'base_lr'?"),
        ("teachers.models.mae.sorce=x", "teachers.models.mae.sorce: unknown key. Did you mean 'source'?"),
        ("train.steps=-1", "train.steps=-1: must be >= 0"),
        ("train.steps=1.5", "train.steps=1.5: not a whole number"),
        ("train.steps=true", "train.steps=true: not a whole number"),
        ("data.num_workers=lots", "data.num_workers: must be a whole number >= 0, or auto; it is lots"),
        ("data.num_workers=-1", "data.num_workers: must be a whole number >= 0, or auto; it is -1"),
        ("optim.base_lr=nan", "optim.base_lr=nan: must be a finite number"),
        ("optim.base_lr=-1", "optim.base_lr=-1: must be > 0"),
        ("classify.head_std=0", "classify.head_std=0: must be > 0"),
        ("train.compile=maybe", "train.compile=maybe: neither true nor false"),
        ("train.log_every_steps=null", "train.log_every_steps=null: null is not allowed here"),
        ("optim.clip_grad_norm=null", "optim.clip_grad_norm=null: null is not allowed here; 0 does not clip"),
        ("augment.mean=[1, 2]", "augment.mean=[1, 2]: must be a list of 3 values, such as [0.485, 0.456, 0.406]"),
        ("train.profile_steps=[5]", "train.profile_steps=[5]: must be a list of 2 values, such as [1, 2]"),
        ("train.profile_steps=5", "train.profile_steps=5: must be a list of 2 values, such as [1, 2]"),
        ("train.accept_changes=code", "train.accept_changes=code: must be a list, such as [code, recipe]"),
        ("teachers.use=mae", "teachers.use=mae: must be a list, such as [a, b]"),
        ("data.crop_scale=0.3", "data.crop_scale=0.3: must be a list of 2 values, such as [0.2, 1]"),
        ("data.crop_scale=[1, 0.3]", "data: crop_scale [1.0, 0.3] is the wrong way round: [0.3, 1.0]"),
        ("segment.scale=[2, 0.5]", "segment: scale [2.0, 0.5] is the wrong way round: [0.5, 2.0]"),
        ("train.profile_steps=[5, 2]", "train: profile_steps [5, 2] is the wrong way round: [2, 5]"),
        ("ibot.mask_ratio=[0.5, 0.1]", "ibot: mask_ratio [0.5, 0.1] is the wrong way round: [0.1, 0.5]"),
        ("ibot.global_crop_scale=[1, 0.3]", "ibot: global_crop_scale [1.0, 0.3] is the wrong way round: [0.3, 1.0]"),
        ("ibot.local_crop_scale=[0, 0]", "ibot: local_crop_scale [0.0, 0.0] holds nothing: end it above 0"),
        ("teachers.use=[]", "teachers: use names no teacher: name at least one, or leave it out (null) to use all"),
        (
            "teachers.use=[mae, mae]",
            "teachers: use names 'mae' twice: keep one; teachers.models.mae.weight=2 counts it twice",
        ),
        ("output_dir=", "output_dir: is empty: name the folder of the run; is a shell variable not set?"),
        ("optim=3", "optim=3: is a section; set its keys, such as optim.base_lr=..."),
        ("teachers.models=3", "teachers.models=3: must have keys: teachers.models.NAME=..."),
        ("teachers.models.x.arch=y", "teachers.models.x.source: is missing; give teachers.models.x.source=..."),
        ("output_dir=a/{nme}", "output_dir=a/{nme}: {nme} is not known; use {name} and {seed}"),
        ("foo", "foo: must be key=value, such as optim.base_lr=1e-3"),
        ("=3", "=3: must be key=value, such as optim.base_lr=1e-3"),
        ("optim..eps=3", "optim..eps=3: must be key=value, such as optim.base_lr=1e-3"),
        ("optim.eps=!!int x", "optim.eps=!!int x: not a YAML value: tag !!int has no use here: take it out"),
        ("augment.mean=[1", "augment.mean=[1: not a YAML value: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_a_bad_override_gets_one_line_with_its_remedy(override: str, complaint: str) -> None:
    assert complaints(None, TEACHER, override) == [f"command line: {complaint}"]


def test_a_rate_that_would_rise_after_the_warmup_is_refused_of_a_run_and_of_a_member() -> None:
    above = "min_lr 0.0025 is above the peak 0.0024, which is base_lr * 4096 images / 256: the rate would rise to it"
    (line,) = complaints("vit_tiny", "optim.min_lr=2.5e-3")
    assert f"optim.{above}" in line
    members = ("family=[vit_tiny,vit_small]", "family.vit_small.optim.min_lr=2.5e-3")
    (line,) = complaints("vit_tiny", *members)
    assert f"family.vit_small.optim.{above}" in line
    assert load_config("vit_tiny", ("optim.min_lr=2.4e-3",)).optim.min_lr == 2.4e-3


def test_what_was_trained_with_settings_that_are_refused_today_is_read(tmp_path: Path) -> None:
    odd = ("optim.min_lr=2.5e-3", "teachers.use=[mae, mae]", "output_dir=")
    config = load_layers("vit_tiny", [("a run", odd)], new=False)
    assert config_from_yaml(to_yaml(config)) == config
    assert (config.optim.min_lr, config.teachers.use, config.output_dir) == (2.5e-3, ("mae", "mae"), "")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert len(complaints(str(tmp_path / "config.yaml"))) == 2, "as a recipe it is to be trained"


def test_a_wrong_word_names_the_allowed_ones() -> None:
    (line,) = complaints(None, TEACHER, "data.source=foldr")
    assert line.startswith("command line: data.source=foldr: must be one of folder, parquet, webdataset, hub, digits.")
    assert line.endswith("Did you mean 'folder'?")


def test_a_bad_name_is_explained_in_words() -> None:
    (line,) = complaints(None, TEACHER, "name=a b")
    assert line == "command line: name=a b: not allowed here. Name of the run: letters, digits, `.`, `_`, `-`."


def test_all_findings_come_at_once_each_with_its_origin(tmp_path: Path) -> None:
    path = recipe(tmp_path, "task: mae\noptim: {epz: 1, base_lr: fast}\nknn: 3")
    lines = complaints(path, "train.epochs=abc", "foo", "seed=-1")
    assert sorted(lines) == sorted(
        [
            f"{path}: optim.epz: unknown key. Did you mean 'eps'?",
            f"{path}: optim.base_lr=fast: not a number",
            f"{path}: knn=3: is a section; set its keys, such as knn.k=...",
            "command line: train.epochs=abc: not a number",
            "command line: foo: must be key=value, such as optim.base_lr=1e-3",
            "command line: seed=-1: must be >= 0",
        ]
    )


def test_a_weak_password_of_the_environment_refuses_only_the_setting_that_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"VNC": "student", "DB": "cosine", "ROOT": "128000", "MY": "staple"}.items():
        monkeypatch.setenv(f"{name}_PASSWORD", value)
    overrides = ["name=my-student", "train.steps=1280000", "data.max_train_images=128000"]
    assert load_config("vit_tiny", overrides).name == "my-student"
    with pytest.raises(ConfigError, match=r"^command line: name=my-\*\*\*: holds [^\n]*$"):
        load_config("vit_tiny", ["name=my-staple"])


def test_an_override_given_twice_is_refused() -> None:
    assert complaints(None, TEACHER, "seed=1", "seed=2") == ["command line: seed is given twice: 1 and 2; keep one"]


def test_a_plain_value_for_a_section_is_refused_even_where_another_override_fills_the_section() -> None:
    assert complaints(None, TEACHER, "optim=3", "optim.eps=1") == [
        "command line: optim=3: is a section; set its keys, such as optim.base_lr=..."
    ]


def test_settings_that_contradict_each_other_are_named() -> None:
    assert complaints(None, TEACHER, "data.image_size=100") == [
        "command line: data.image_size 100 is not a multiple of student.patch_size 16: take 96 or 112"
    ]


def test_distillation_without_teachers_says_how_to_give_one() -> None:
    (line,) = complaints(None)
    assert "teachers.models.NAME.source=FILE" in line


# Files


def test_broken_yaml_is_located_by_line_and_column(tmp_path: Path) -> None:
    path = recipe(tmp_path, "task: mae\noptim:\n  eps: [1\nname: x\n")
    (line,) = complaints(path)
    assert line.startswith(f"{path}:4:5: not valid YAML: ")


def test_a_key_that_stands_twice_in_a_recipe_is_located(tmp_path: Path) -> None:
    path = recipe(tmp_path, "task: mae\nseed: 1\nseed: 2\n")
    assert complaints(path) == [f"{path}:3:1: not valid YAML: key 'seed' is given twice"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{[a, b]: 1}", "1:2: not valid YAML: a key must be text, not a list or mapping"),
        ("optim:\n  ? {a: b}\n  : 1", "2:5: not valid YAML: a key must be text, not a list or mapping"),
        ("seed: !!timestamp x", "1:7: not valid YAML: tag !!timestamp has no use here: take it out"),
        ("optim: {eps: !!int x}", "1:14: not valid YAML: tag !!int has no use here: take it out"),
        ("optim: &all {eps: *all}", "1:8: not valid YAML: an anchor contains itself"),
    ],
)
def test_yaml_that_has_no_settings_in_it_is_located(tmp_path: Path, text: str, problem: str) -> None:
    path = recipe(tmp_path, text)
    assert complaints(path) == [f"{path}:{problem}"]


def test_tags_that_change_nothing_are_read(tmp_path: Path) -> None:
    assert load_config(recipe(tmp_path, 'task: !!str mae\nname: ! "12"\nlinear: !!map {}')).name == "12"


def test_yaml_anchors_and_merges_work(tmp_path: Path) -> None:
    text = "task: mae\ntracking: {tags: &t {a: x}}\nteachers: {models: {m: &m {source: s}, n: {<<: *m, weight: 2}}}"
    models = load_config(recipe(tmp_path, text)).teachers.models
    assert (models["n"].source, models["n"].weight) == ("s", 2)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = recipe(tmp_path, text)
    (line,) = complaints(path)
    assert line.startswith(f"{path}: must be a mapping of keys")


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.yaml"
    path.write_bytes(b"\xff\xfe\x00binary")
    (line,) = complaints(path)
    assert line.startswith(f"{path}: can't be read:")


def test_a_missing_recipe_lists_the_shipped_ones() -> None:
    (line,) = complaints("vit_tny")
    assert line.startswith("recipe 'vit_tny' is not there. Did you mean 'vit_tiny'? Shipped recipes: ")
    assert all(name in line for name in RECIPES.names())


def test_recipes_that_stand_on_each_other_in_a_circle_are_refused(tmp_path: Path) -> None:
    one = recipe(tmp_path, "base: two.yaml", "one.yaml")
    two = recipe(tmp_path, "base: one.yaml", "two.yaml")
    (line,) = complaints(one)
    assert line == f"{one}: base: the recipes go in a circle: {one} -> {two} -> {one}; take one base out"


def test_a_missing_base_names_the_recipe_that_asks_for_it(tmp_path: Path) -> None:
    path = recipe(tmp_path, "base: nobody")
    (line,) = complaints(path)
    assert line.startswith(f"{path}: base: recipe 'nobody' is not there.")


# There and back


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_shipped_recipe_loads_and_survives_being_saved(name: str) -> None:
    config = load_config(name)
    assert config_from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_shipped_recipe_says_first_what_it_is_for(name: str) -> None:
    assert find_recipe(name).read_text().startswith("# ")


def test_awkward_text_survives_being_saved() -> None:
    awkward = ["007", "1e-3", "no", "~", "a: b # c", "grün", "[x]", "'", "2020-01-01"]
    tags = {f"t{number}": text for number, text in enumerate(awkward)}
    config = RunConfig.model_validate({"task": "mae", "output_dir": "out", "tracking": {"tags": tags}})
    assert config_from_yaml(to_yaml(config)) == config


def test_flat_settings_are_plain_and_rebuild_the_run() -> None:
    flat = flatten(load_config(None, [TEACHER]))
    assert flat["teachers.models.mae.source"] == "/weights/mae.pth"
    assert flat["augment.mean"] == [0.485, 0.456, 0.406]
    assert flatten_tree(flat) == flat


def test_a_run_is_checked_without_torch() -> None:
    code = (
        "import sys; from dmt_ds.config.load import load_config; load_config('vit_tiny'); "
        "import dmt_ds.config.deepspeed, dmt_ds.config.resume, dmt_ds.commands.config; print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


# The recipes hold what the paper says (section 3.1)


@pytest.mark.parametrize(
    ("name", "student"), [("vit_tiny", "vit_tiny"), ("vit_small", "vit_small"), ("vit_base", "vit_base")]
)
def test_the_paper_recipes_hold_the_papers_settings(name: str, student: str) -> None:
    config = load_config(name)
    assert config.student.arch == student
    assert (config.train.epochs, config.train.global_batch_size) == (300, 4096)
    assert config.optim.base_lr * config.train.global_batch_size / 256 == pytest.approx(2.4e-3)
    assert (config.optim.warmup_epochs, config.optim.min_lr) == (15, 0)
    assert (config.optim.betas, config.optim.weight_decay, config.optim.clip_grad_norm) == ((0.9, 0.95), 0.05, 0)
    assert (config.data.image_size, config.data.crop_scale) == (224, (0.2, 1))
    assert (config.augment.brightness, config.augment.contrast, config.augment.saturation) == (0.4, 0.4, 0.4)
    assert (config.augment.hue, config.augment.jitter_probability) == (0, 1)
    assert (config.distill.divergence, config.distill.direction, config.distill.fusion) == (
        "kl",
        "student_teacher",
        "sum",
    )
    assert (config.student.positions, config.student.drop_path) == ("sincos", 0.1)
    assert list(config.teachers.used()) == ["mae", "moco_v3", "ibot"]
    assert config.teachers.sharding == "zero3"
    assert config.train.deepspeed == "student_zero2_bf16"


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_label_baselines_hold_deits_settings(size: str) -> None:
    config = load_config(f"deit_{size}")
    assert (config.task, config.student.arch, config.student.positions) == ("classify", f"vit_{size}", "learned")
    assert (config.train.epochs, config.train.global_batch_size) == (300, 1024)
    assert config.optim.base_lr * config.train.global_batch_size / 256 == pytest.approx(5e-4 * 1024 / 512)
    assert (config.optim.warmup_epochs, config.optim.min_lr, config.optim.weight_decay) == (5, 1e-5, 0.05)
    assert (config.optim.betas, config.optim.clip_grad_norm) == ((0.9, 0.999), 0)
    assert (config.student.drop_path, config.data.crop_scale) == (0.1, (0.08, 1))
    assert (config.augment.brightness, config.augment.contrast, config.augment.saturation) == (0, 0, 0)
    section = config.classify
    assert (section.pooling, section.label_smoothing, section.erasing) == ("class", 0.1, 0.25)
    assert (section.mixup, section.cutmix, section.mix_probability, section.cutmix_share) == (0.8, 1, 1, 0.5)
    assert (section.rand_augment_magnitude, section.rand_augment_std) == (9, 0.5)


@pytest.mark.parametrize("name", RECIPES.names())
def test_drop_path_is_constant_where_tinymim_or_dmt_distil_and_rises_elsewhere(name: str) -> None:
    config = load_config(name)
    students = [member.student for member in config.family.values()] or [config.student]
    rules = {student.drop_path_rule for student in students if student.drop_path}
    assert rules <= {"constant" if config.task in ("dmt", "tinymim") else "linear"}


@pytest.mark.parametrize("name", ["ibot", "dino"])
def test_a_gradient_that_the_authors_do_not_clip_is_not_clipped(name: str) -> None:
    config = load_config(name)
    section = config.ibot.model_copy(update={"output_dim": 8})
    with torch.device("meta"):  # only counted
        module = IbotTask(config.student, section, config.data.image_size).module
    num_weights = sum(parameter.requires_grad for parameter in module.parameters())
    assert config.optim.clip_grad_norm == pytest.approx(0.3 * num_weights**0.5, abs=0.05)  # each has a norm of 0.3


def test_moco_v3_crops_by_torchvisions_default() -> None:
    assert load_config("moco_v3").data.interpolation == "bilinear"


def test_what_was_measured_trains_as_it_did() -> None:
    assert load_config("small_finetune").classify.head_std == 0.02
    assert load_config("small_linear").classify.head_std == 0.01


@pytest.mark.parametrize("name", [name for name in RECIPES.names() if name.startswith("detect_coco_")])
def test_the_recipes_of_coco_hold_the_1x_setting(name: str) -> None:
    config = load_config(name)
    optim, train, section = config.optim, config.train, config.detect
    assert (train.epochs, optim.schedule, [12 * share for share in optim.decay_at]) == (12, "steps", [8, 11])
    images, layer_decay, drop_path = (16, 0.75, 0.2) if name.endswith("base") else (32, 0.8, 0.1)
    assert train.global_batch_size == images and optim.base_lr * images / 256 == pytest.approx(1e-4)
    assert plan_batch(images, train.micro_batch_size, 8).grad_accum_steps == 1
    assert (optim.layer_decay, optim.weight_decay, config.student.drop_path) == (layer_decay, 0.05, drop_path)
    assert (section.short_sides[0], section.short_sides[-1], section.max_side) == (480, 800, 1333)
    assert section.heads == ("cascade" if "cascade" in name else "mask_rcnn")


def test_the_recipe_of_tinymim_differs_from_dmts_in_the_method_and_its_one_teacher() -> None:
    tinymim, dmt = flatten(load_config("tinymim_vit_tiny")), flatten(load_config("vit_tiny"))
    differing = {key for key in tinymim if tinymim[key] != dmt[key]}
    assert differing == {"task", "name", "output_dir", "teachers.use"}
    assert (tinymim["task"], tinymim["teachers.use"]) == ("tinymim", ["mae"])
    assert (tinymim["tinymim.qk_weight"], tinymim["tinymim.vv_weight"]) == (1, 1)


@pytest.mark.parametrize("task", ["dmt", "tinymim"])
def test_teachers_without_any_weight_are_refused(task: str) -> None:
    (line,) = complaints(None, TEACHER, f"task={task}", "teachers.models.mae.weight=0")
    assert "teachers ['mae'] have weight 0" in line


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_recipes_of_ade20k_train_by_tinymims_settings(size: str) -> None:
    config = load_config(f"segment_ade20k_vit_{size}")
    train, optim, section = config.train, config.optim, config.segment
    assert config.student.arch == f"vit_{size}"
    assert (train.steps, train.global_batch_size, config.data.image_size) == (160_000, 16, 512)
    layer_decay = 0.8 if size == "tiny" else 0.75  # TinyMIM has configurations of ViT-T and ViT-B
    assert (optim.base_lr * 16 / 256, optim.layer_decay, optim.weight_decay) == pytest.approx((1e-4, layer_decay, 0.05))
    assert (optim.warmup_steps, optim.schedule, config.student.drop_path) == (1500, "linear", 0.1)
    assert (section.auxiliary_weight, section.test_window, section.test_stride) == (0.4, "slide", 341)


def test_a_folder_is_told_to_be_one_and_a_runs_recipe_is_named(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "ok1"
    run.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"ok1': is a folder; give a YAML file in it$"):
        load_config(str(run))
    (run / "config.yaml").write_text("task: mae\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(run))
    assert str(caught.value) == f"recipe '{run}': is a folder; a run's recipe is {run}/config.yaml"


def test_a_file_here_without_an_ending_is_a_recipe_unless_a_shipped_one_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "vit_tiny"):
        (tmp_path / name).write_text("task: mae\n")
    assert find_recipe("mine") == Path("mine")
    assert find_recipe("vit_tiny").parent.name == "recipes"

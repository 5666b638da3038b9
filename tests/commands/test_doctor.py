"""What the doctor finds, before a queue does."""

import errno
import json
import shutil
import sqlite3
import sysconfig
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image

from dmt_ds import storage
from dmt_ds.commands.annotations.segment import Segmentation
from dmt_ds.commands.checks.default_check import look_at_defaults
from dmt_ds.commands.checks.device_check import slow_paths, without_kernels
from dmt_ds.commands.checks.doctor import run
from dmt_ds.commands.checks.findings import Finding, exit_code, render
from dmt_ds.commands.checks.image_check import look_at_images
from dmt_ds.commands.training.runs import check_batch_norm
from dmt_ds.commands.training.tasks import build_task
from dmt_ds.config.batch import plan_batch
from dmt_ds.config.load import RECIPES, load_config
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.sources import open_source
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder, RunState
from dmt_ds.errors import ConfigError, DataError
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.vit import build_vit
from dmt_ds.tracking import mlflow_look
from dmt_ds.tracking.shipper import StoreAway
from tests.faults import places
from tests.models import tiny
from tests.tiny_scenes import CLASSES, write_ade


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of three images, and one validation image."""
    picture = Image.effect_noise((32, 32), 50).convert("RGB")
    for name in (
        "train/cat/1",
        "train/cat/2",
        "train/cat/3",
        "train/dog/1",
        "train/dog/2",
        "train/dog/3",
        "val/cat/1",
        "val/dog/1",
    ):
        path = tmp_path / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return tmp_path / "images"


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    state = {f"backbone.{key}": value for key, value in tiny.vit().state_dict().items()}
    torch.save({"teacher": state}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def small_run(tmp_path: Path, images: Path, *more: str) -> RunConfig:
    settings: dict[str, object] = {
        "data.source": "folder",
        "data.path": images,
        "data.image_size": tiny.IMAGE_SIZE,
        "student.patch_size": tiny.PATCH_SIZE,
        "student.embed_dim": 24,
        "student.depth": 1,
        "student.num_heads": 2,
        "mae.decoder_embed_dim": 16,
        "mae.decoder_depth": 1,
        "train.global_batch_size": 4,
        "train.micro_batch_size": 2,
        "train.deepspeed": "student_zero2_fp32",
        "tracking.enabled": "false",
        "output_dir": tmp_path / "run",
    }
    settings |= dict(override.split("=", 1) for override in more)
    return load_config(None, [f"{key}={value}" for key, value in settings.items()])


def teacher_making(tmp_path: Path, images: Path, *more: str, ranks: int = 2) -> list[Finding]:
    return run(small_run(tmp_path, images, "task=mae", *more), ranks)


def distillation(tmp_path: Path, images: Path, teacher: Path, *more: str, ranks: int = 2) -> list[Finding]:
    source = (f"teachers.models.ibot.source={teacher}", f"teachers.models.ibot.num_heads={tiny.HEADS}")
    return run(small_run(tmp_path, images, *source, *more), ranks)


def test_what_the_values_of_annotations_stand_for_is_told_and_doubted(tmp_path: Path) -> None:
    ade = write_ade(tmp_path / "ade")
    (ade / "classes.json").write_text(json.dumps(dict(enumerate(("sky", *CLASSES)))))
    settings = ("task=segment", "data.train_split=training", "data.val_split=validation", "segment.channels=8")
    findings = run(small_run(tmp_path, ade, *settings), ranks=1)
    told = "values of pixels: 1 ground, 2 red, 3 green; no class: 0 (sky), 255"
    assert Finding("ok", "data", told) in findings
    (doubt,) = [finding.message for finding in findings if (finding.status, finding.what) == ("warn", "data")]
    assert doubt.startswith("value 0 is called 'sky', but ignored:")


@pytest.mark.parametrize(
    ("short_side", "told"),
    [
        ("512", "a crop shows about 1/256 of an image; segment.short_side=32 is usual"),
        ("8", "an image fills 1/16 of a crop; segment.short_side=32 is usual"),
        ("64", ""),
        ("16", ""),
        ("null", ""),
    ],
)
def test_a_crop_out_of_proportion_to_the_image_is_told(tmp_path: Path, short_side: str, told: str) -> None:
    data = ("task=segment", "data.train_split=training", "data.val_split=validation", "segment.channels=8")
    config = small_run(tmp_path, write_ade(tmp_path / "ade"), *data, f"segment.short_side={short_side}")
    assert tiny.IMAGE_SIZE == 32
    findings = [finding for finding in run(config, ranks=1) if finding.what == "segment"]
    assert [finding.status for finding in findings] == ["warn"] * bool(told)
    assert not told or findings[0].message.endswith(told)


@pytest.mark.parametrize("name", [name for name in RECIPES.names() if "segment" in name])
def test_shipped_recipes_crop_in_proportion(name: str) -> None:
    assert Segmentation().doubts(load_config(name)) == []


def test_segmentation_with_one_image_a_rank_is_refused_on_one_rank_alone(tmp_path: Path) -> None:
    data = ("data.train_split=training", "data.val_split=validation", "segment.channels=8")
    config = small_run(tmp_path, write_ade(tmp_path / "ade"), "task=segment", *data, "train.micro_batch_size=1")
    assert failed(run(config, ranks=4)) == {}
    refused = failed(run(config, ranks=1))
    assert list(refused) == ["batch"] and "batch norm in the heads of segment" in refused["batch"]


def failed(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.message for finding in findings if finding.status == "fail"}


def said(findings: list[Finding], what: str) -> str:
    return "\n".join(f"{finding.status}: {finding.message}" for finding in findings if finding.what == what)


def test_a_healthy_run_has_nothing_that_fails(tmp_path: Path, images: Path, teacher: Path) -> None:
    findings = distillation(tmp_path, images, teacher)
    assert failed(findings) == {}
    assert said(findings, "batch") == "ok: 4 = 2 x 2 ranks x 1 accumulation steps"
    assert "ok: 6 training images, 2 classes" in said(findings, "data")
    assert f"{tiny.WIDTH} wide" in said(findings, "teachers")


def test_looking_leaves_nothing_behind(tmp_path: Path, images: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    teacher_making(tmp_path, images)
    assert sorted(tmp_path.rglob("*")) == before


def test_one_failure_hides_no_other(tmp_path: Path, images: Path) -> None:
    findings = distillation(
        tmp_path, images / "nothing", Path("/no/teacher.pth"), "train.deepspeed=/no/file.json", "distill.fusion=concat"
    )
    assert set(failed(findings)) == {"deepspeed", "data", "teachers"}


def test_a_job_whose_gpus_torch_does_not_see_fails(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    message = failed(teacher_making(tmp_path, images))["device"]
    assert message.startswith("8 GPUs are allocated but torch sees none")


def test_a_gpus_node_without_a_compiler_or_pythons_headers_is_slower_and_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: str(tmp_path))
    monkeypatch.setenv("CC", "/usr/bin/cc")
    gpu = torch.device("cuda")
    assert list(slow_paths(gpu)) == []
    (tmp_path / "Python.h").unlink()
    (headers,) = slow_paths(gpu)
    assert headers.status == "warn" and "triton needs Python's headers" in headers.message
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    (compiler,) = slow_paths(gpu)
    assert compiler.message.startswith(
        "losses and jitter use slower code and nothing is compiled: triton needs a C compiler"
    )


@pytest.mark.parametrize(("capability", "fits"), [((7, 0), False), ((7, 5), True), ((8, 9), True), ((12, 1), True)])
def test_a_gpu_that_torch_has_no_kernels_for_is_named(monkeypatch, capability, fits) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "sm_120", "compute_120"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    told = without_kernels()
    assert told is None if fits else told and "Tesla V100 has compute capability 7.0, and torch" in told


def test_a_batch_that_does_not_divide_shows_its_arithmetic(tmp_path: Path, images: Path) -> None:
    message = failed(teacher_making(tmp_path, images, ranks=3))["batch"]
    assert "4 is not divisible by micro_batch_size 2 x 3 ranks = 6; nearest: 6" in message


def test_moco_v3_with_accumulation_is_told_its_number_of_keys(tmp_path: Path, images: Path) -> None:
    small_heads = ("task=moco_v3", "moco_v3.hidden_dim=16", "moco_v3.output_dim=8", "train.global_batch_size=16")
    findings = run(small_run(tmp_path, images, *small_heads), ranks=2)
    assert "warn: moco_v3: 4 keys instead of 16: accumulation adds no negatives" in said(findings, "batch")
    assert "keys" not in said(run(small_run(tmp_path, images, *small_heads), ranks=8), "batch")
    assert "keys" not in said(teacher_making(tmp_path, images, "train.global_batch_size=16"), "batch")


@pytest.mark.parametrize(
    ("task", "ranks", "over_ranks", "is_refused"),
    [
        ("moco_v3", 1, True, True),
        ("moco_v3", 4, True, False),
        ("moco_v3", 4, False, True),
        ("segment", 1, True, True),
        ("segment", 4, False, False),  # its heads share on CPU ranks too
    ],
)
def test_one_image_for_a_batch_norm_is_refused(task: str, ranks: int, over_ranks: bool, is_refused: bool) -> None:
    config, plan = load_config(None, [f"task={task}", "train.micro_batch_size=1"]), plan_batch(4, 1, ranks)
    with pytest.raises(ConfigError, match=r"train.micro_batch_size 1: batch norm") if is_refused else nullcontext():
        check_batch_norm(config, plan, over_ranks=over_ranks)
    check_batch_norm(load_config("mae"), plan, over_ranks=over_ranks)


def test_doctor_refuses_moco_v3_with_one_image_a_micro_batch(tmp_path: Path, images: Path) -> None:
    settings = ("task=moco_v3", "moco_v3.hidden_dim=16", "moco_v3.output_dim=8", "train.micro_batch_size=1")
    assert "batch norm in the heads of moco_v3" in failed(run(small_run(tmp_path, images, *settings), ranks=1))["batch"]


JITTER = ("brightness", "contrast", "saturation")


def told_of_defaults(*overrides: str) -> list[tuple[str, str]]:
    return [(found.what, found.message) for found in look_at_defaults(load_config(None, overrides))]


def test_defaults_of_dmts_that_another_task_took_over_are_told() -> None:
    (jitter, drop_path) = told_of_defaults("task=mae")
    assert jitter[0] == "augment" and jitter[1].endswith(
        "the usual recipes of task mae have none: augment.brightness=0 augment.contrast=0 augment.saturation=0"
    )
    none = "drop_path 0.1 is DMT's default; the usual recipes of task mae have none: student.drop_path=0"
    assert drop_path == ("student", none)
    said = (*(f"augment.{key}=0.4" for key in JITTER), "student.drop_path=0.1", "student.drop_path_rule=constant")
    assert told_of_defaults("task=mae", *said) == []  # so meant


@pytest.mark.parametrize("key", JITTER)
def test_jitter_that_is_said_in_part_is_told_for_the_rest(key: str) -> None:
    ((_, message),) = told_of_defaults("task=mae", f"augment.{key}=0", "student.drop_path=0")
    left = [f"augment.{other}=0" for other in JITTER if other != key]
    assert message.endswith(f"have none: {' '.join(left)}")
    ((_, message),) = told_of_defaults("task=mae", *left, "student.drop_path=0")
    assert message.endswith(f"have none: augment.{key}=0")


@pytest.mark.parametrize("task", ["ibot", "dino", "segment", "detect", "classify"])
def test_a_rule_of_drop_path_that_only_distillation_has_is_told(task: str) -> None:
    no_jitter = [f"augment.{key}=0" for key in JITTER]
    rule = "drop_path_rule constant is DMT's default; the usual recipes of task"
    told = [("student", f"{rule} {task} have linear: student.drop_path_rule=linear")]
    assert told_of_defaults(f"task={task}", *no_jitter) == told
    assert told_of_defaults(f"task={task}", *no_jitter, "student.drop_path=0") == []
    assert told_of_defaults(f"task={task}", *no_jitter, "student.drop_path_rule=constant") == []


@pytest.mark.parametrize("name", RECIPES.names())
def test_shipped_recipes_take_no_default_over_from_another_task(name: str) -> None:
    assert list(look_at_defaults(load_config(name))) == []


def test_a_corrupt_image_among_those_looked_at_is_named(tmp_path: Path, images: Path) -> None:
    (images / "train" / "dog" / "3.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    assert str(images / "train" / "dog" / "3.jpg") in failed(teacher_making(tmp_path, images))["data"]


def test_images_that_no_class_folder_has_are_told_of_each_split(tmp_path: Path, images: Path) -> None:
    assert "left out" not in said(teacher_making(tmp_path, images), "data")
    for name in ("train/cat/1.jpg", "train/cat/2.jpg", "val/cat/1.jpg"):
        shutil.copy(images / name, images / name.split("/")[0])
    told = said(teacher_making(tmp_path, images), "data")
    for split, count in (("train", 2), ("val", 1)):
        line = f"warn: {images / split}: images next to its class folders (cat, dog) are left out, {count} of them: "
        assert told.count(line) == 1, told


def test_a_missing_validation_split_is_no_failure(tmp_path: Path, images: Path) -> None:
    findings = teacher_making(tmp_path, images, "data.val_split=elsewhere")
    assert failed(findings) == {}
    assert "warn: needed for k-NN only" in said(findings, "data")


def test_a_run_that_is_to_be_judged_by_knn_needs_the_validation_split(tmp_path: Path, images: Path) -> None:
    assert failed(teacher_making(tmp_path, images, "train.eval_every_epochs=1")) == {}
    findings = teacher_making(tmp_path, images, "train.eval_every_epochs=1", "data.val_split=elsewhere")
    assert "elsewhere" in failed(findings)["data"]
    assert failed(findings)["data"].endswith("; train.eval_every_epochs=0 trains without being judged by k-NN")


def test_a_warmup_as_long_as_the_run_is_told(tmp_path: Path, images: Path) -> None:
    findings = teacher_making(tmp_path, images, "train.steps=5", "optim.warmup_steps=5")
    assert said(findings, "length").startswith("warn: 5 steps (3.333 epochs), 5 of them warm-up")


def test_a_batch_that_has_each_image_many_times_is_told(tmp_path: Path, images: Path) -> None:
    assert "images an update" not in said(
        teacher_making(tmp_path, images, "train.global_batch_size=6", ranks=1), "batch"
    )
    told = teacher_making(tmp_path, images, "train.global_batch_size=16", "train.steps=30")
    assert "warn: 16 images an update of 6 training images: each is seen 2.67 times" in said(told, "batch")
    assert said(told, "length").startswith("ok: 30 steps (80 epochs), ")


def test_a_damaged_teacher_is_named_with_its_key(tmp_path: Path, images: Path) -> None:
    state = {f"backbone.{key}": value for key, value in tiny.vit().state_dict().items()}
    state.pop("backbone.norm.weight")
    torch.save({"teacher": state}, tmp_path / "damaged.pth")
    message = failed(distillation(tmp_path, images, tmp_path / "damaged.pth"))["teachers"]
    assert "teacher 'ibot'" in message
    assert "norm.weight" in message


def test_heads_that_are_guessed_are_told_with_the_key_to_set(tmp_path: Path, images: Path) -> None:
    torch.save(tiny.vit(embed_dim=64, num_heads=2).state_dict(), tmp_path / "some.pth")
    source = f"teachers.models.some.source={tmp_path}/some.pth"
    guessed = said(run(small_run(tmp_path, images, source), ranks=2), "teachers")
    assert "warn: some: num_heads 1 is a guess from the width, 64" in guessed
    assert "teachers.models.some.num_heads=1" in guessed
    told = said(run(small_run(tmp_path, images, source, "teachers.models.some.num_heads=2"), ranks=2), "teachers")
    assert "guess" not in told and "64 wide, 2 blocks, 2 heads" in told


def test_a_teacher_that_is_not_there_is_told_with_its_key_and_where_to_get_it(tmp_path: Path, images: Path) -> None:
    message = failed(distillation(tmp_path, images, tmp_path / "none.pth"))["teachers"]
    assert message == (
        f"teacher 'ibot': {tmp_path}/none.pth: no such file; `dmt-ds teachers list` shows where to get weights; "
        "or set teachers.models.ibot.source=..."
    )


def test_teachers_and_student_of_different_patches_are_told(tmp_path: Path, images: Path, teacher: Path) -> None:
    message = failed(distillation(tmp_path, images, teacher, "student.patch_size=4"))["student"]
    assert message == (
        "student.patch_size 4 cuts 32 pixels into another grid than teacher 'ibot' (patch 8, image 32); "
        "set student.patch_size=8"
    )


def test_teachers_whose_heads_do_not_fit_a_student_of_tinymim_are_told(
    tmp_path: Path, images: Path, teacher: Path
) -> None:
    blue = (f"teachers.models.blue.source={teacher}", "teachers.models.blue.num_heads=4")
    findings = distillation(tmp_path, images, teacher, "task=tinymim", *blue)
    assert "'ibot' and 'blue' have 2 and 4 heads" in failed(findings)["student"]
    one = distillation(tmp_path, images, teacher, "task=tinymim", "teachers.models.ibot.num_heads=16")
    assert "16 does not divide the student's width 24" in failed(one)["student"]


@pytest.mark.parametrize("task", ["dmt", "tinymim", "mae"])
def test_weights_to_start_from_that_do_not_fit_are_told(tmp_path: Path, images: Path, teacher: Path, task: str) -> None:
    findings = distillation(tmp_path, images, teacher, f"task={task}", f"student.init_from={tmp_path}/none.pth")
    assert failed(findings)["student"].startswith(f"student.init_from {tmp_path}/none.pth: no such file; name ")


def test_what_deepspeed_does_not_know_is_told_of_student_and_teachers(
    tmp_path: Path, images: Path, teacher: Path
) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 3, "memory_efficient_linear": false, "overlap_com": true}}')
    findings = distillation(tmp_path, images, teacher, f"train.deepspeed={own}", f"teachers.deepspeed={own}")
    told = [finding.message for finding in findings if finding.status == "fail"]
    assert told == [f"{own}: zero_optimization.overlap_com: unknown key. Did you mean 'overlap_comm'?"] * 2


def test_a_disk_that_is_too_small_is_told(tmp_path: Path, images: Path) -> None:
    findings = teacher_making(tmp_path, images, "train.keep_checkpoints=1000000000")
    assert "choose another output_dir, or train.keep_checkpoints=1" in failed(findings)["output"]


def test_a_folder_that_can_not_be_written_is_told(tmp_path: Path, images: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    findings = teacher_making(tmp_path, images, f"output_dir={tmp_path}/file/run")
    assert "can't write in" in failed(findings)["output"]


def test_a_tracking_server_that_is_away_is_only_a_warning(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    findings = teacher_making(tmp_path, images, "tracking.enabled=true", "tracking.uri=http://127.0.0.1:9")
    assert failed(findings) == {}
    assert said(findings, "tracking").startswith("warn: ")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("foo://bar", "no store has the scheme 'foo'"),
        ("{folder}/mlruns", "MLflow no longer keeps runs in plain folders; use sqlite:///"),
        ("sqlite:////proc/nodir/x.db", "set tracking.uri to a file of yours"),
        ("sqlite:///{folder}/file/x.db", "set tracking.uri to a file of yours"),
        ("sqlite:///{folder}/file", "is not an SQLite file"),
        ("sqlite:///{folder}/broken.db", "tracking.uri sqlite:///"),
    ],
)
def test_a_store_that_training_would_refuse_fails(tmp_path: Path, images: Path, uri: str, said: str) -> None:
    (tmp_path / "file").write_text("no folder and no database")
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + b"?" * 5000)
    uri = uri.format(folder=tmp_path)
    findings = teacher_making(tmp_path, images, "tracking.enabled=true", f"tracking.uri={uri}")
    assert said in failed(findings)["tracking"]


def test_looking_at_a_store_makes_neither_folders_nor_files_nor_an_experiment(
    tmp_path: Path, images: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "there.db")
    sqlite3.connect(tmp_path / "others.db").execute("CREATE TABLE cats (name TEXT)").connection.close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("new/folder/mlflow.db", "mlflow.db", "there.db", "others.db"):
        findings = teacher_making(
            tmp_path, images, "tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}/{name}"
        )
        answer = "experiment dmt_ds will be created by the run" if name == "there.db" else "the run will create it"
        assert answer in said(findings, "tracking") and failed(findings) == {}
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_a_deleted_experiment_fails_with_its_remedy(tmp_path: Path, images: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "there.db")
    with sqlite3.connect(tmp_path / "there.db") as writer:
        writer.execute("UPDATE experiments SET lifecycle_stage = 'deleted'")
    store = ("tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}/there.db", "tracking.experiment=Default")
    message = failed(teacher_making(tmp_path, images, *store))["tracking"]
    assert "experiment Default was deleted; `mlflow experiments restore -x 0`" in message


def test_a_store_that_somebody_else_writes_to_is_only_a_warning(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_look, "_is_new", lambda _: False)
    (tmp_path / "locked.db").write_bytes(b"SQLite format 3\0" + b"?" * 5000)

    def locked(*_: object) -> str:
        raise StoreAway("OperationalError: database is locked")

    monkeypatch.setattr(mlflow_look, "_state", locked)
    findings = teacher_making(tmp_path, images, "tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}/locked.db")
    assert failed(findings) == {} and "can't be reached properly now" in said(findings, "tracking")


def test_a_task_that_learns_labels_has_its_head_counted(tmp_path: Path, images: Path) -> None:
    findings = run(small_run(tmp_path, images, "task=classify"), ranks=2)
    assert failed(findings) == {}
    assert "million trained parameters" in said(findings, "student")


def test_a_task_that_learns_labels_fails_without_them(tmp_path: Path, images: Path) -> None:
    for path in sorted((images / "val").glob("*/*.jpg")):
        path.rename(images / "val" / f"{path.parent.name}.jpg")
    for folder in (images / "val").glob("*/"):
        folder.rmdir()
    findings = run(small_run(tmp_path, images, "task=classify"), ranks=2)
    assert set(failed(findings)) == {"data"}
    assert "the validation images have no labels" in failed(findings)["data"]
    assert "warn: not built" in said(findings, "student")


def test_each_member_of_a_family_is_looked_at_and_their_parameters_add_up(
    tmp_path: Path, images: Path, teacher: Path
) -> None:
    overrides = ("task=dmt", f"teachers.models.ibot.source={teacher}", "teachers.models.ibot.num_heads=2")
    members = ("family.slim.student.depth=1", "family.wide.student.embed_dim=48")
    findings = run(small_run(tmp_path, images, *overrides, *members), ranks=2)
    assert failed(findings) == {}
    for what in ("deepspeed slim", "deepspeed wide", "checkpoint slim", "checkpoint wide"):
        assert said(findings, what).startswith("ok: ")
        assert "million trained parameters" in said(findings, f"student {what.split()[1]}")
    assert said(findings, "teachers").count("ibot: ") == 1 and said(findings, "output").startswith("ok: ")

    unknown = tuple(f"family.wide.student.{setting}" for setting in ("arch=vit_tinny", "depth=1", "num_heads=2"))
    findings = run(small_run(tmp_path, images, *overrides, *members, *unknown), ranks=2)
    assert list(failed(findings)) == ["student wide"]


def save_checkpoint(tmp_path: Path, config: RunConfig, fingerprint: str) -> None:
    def write(folder: Path, tag: str) -> None:
        (folder / tag / "weights.pt").write_bytes(b"0")

    built = build_task(config, torch.device("cpu"))
    state = RunState(
        step=7,
        images_seen=28,
        world_size=1,
        zero_stage=2,
        precision="fp32",
        config=config.model_dump(mode="json"),
        teachers={name: record.sha256 or "" for name, record in built.sources.items()},
        data_fingerprint=fingerprint,
        parameters=built.parameters,
    )
    CheckpointFolder(tmp_path / "run" / "checkpoints", keep=2).save(state, write)


@pytest.mark.parametrize("task", ["dmt", "tinymim", "mae"])
@pytest.mark.parametrize("starts_from_weights", [False, True])
def test_a_checkpoint_of_the_same_run_is_gone_on_from(
    tmp_path: Path, images: Path, teacher: Path, task: str, starts_from_weights: bool
) -> None:
    overrides = [f"task={task}", f"teachers.models.ibot.source={teacher}", "teachers.models.ibot.num_heads=2"]
    if starts_from_weights:
        section = small_run(tmp_path, images, "task=mae").student
        vit = build_vit(section, tiny.IMAGE_SIZE)
        provenance = {"task": "mae", "teachers": {}}
        save_backbone(tmp_path / "old", vit.state_dict(), section, tiny.IMAGE_SIZE, provenance=provenance)
        overrides.append(f"student.init_from={tmp_path / 'old'}")
    config = small_run(tmp_path, images, *overrides)
    save_checkpoint(tmp_path, config, open_source(config.data, "train").fingerprint)
    findings = run(config, ranks=2)
    assert failed(findings) == {}
    assert "(step 7, converted from 1 to 2 ranks)" in said(findings, "checkpoint")


def test_a_checkpoint_of_another_run_shows_the_difference(tmp_path: Path, images: Path) -> None:
    other = small_run(tmp_path, images, "task=mae", "optim.base_lr=1")
    save_checkpoint(tmp_path, other, "other images")
    findings = run(small_run(tmp_path, images, "task=mae"), ranks=2)
    (refusal,) = [finding.message for finding in findings if finding.status == "fail"]
    assert "\noptim.base_lr: 1.0 -> 0.00015\ndata_fingerprint: other images -> " in refusal
    assert render(findings).splitlines()[-1].startswith("1 problem")


def test_the_table_marks_each_line_and_says_what_it_comes_to() -> None:
    findings = [Finding("ok", "a", "fine"), Finding("warn", "bbb", "look"), Finding("fail", "c", "broken")]
    assert render(findings).splitlines() == [
        "✓ a    fine",
        "! bbb  look",
        "✗ c    broken",
        "",
        "1 problem, 1 warning",
    ]
    refusal = [Finding("ok", "longer", "fine"), Finding("fail", "c", "is another run:\nseed: 0 -> 1\nname: a -> b")]
    assert render(refusal).splitlines()[1:] == [
        "✗ c       is another run:",
        "          seed: 0 -> 1",
        "          name: a -> b",
        "",
        "1 problem",
    ]
    assert render(findings[:1]).splitlines()[-1] == "ready"


def test_broken_images_are_named_of_both_splits_where_all_are_looked_at(tmp_path: Path, images: Path) -> None:
    broken = [images / "train/dog/2.jpg", images / "val/dog/1.jpg"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:100])
    config = small_run(tmp_path, images, "task=mae")
    told = [finding.message for finding in run(config, 2, every_image=True) if finding.status == "fail"]
    assert len(told) == 2 and all(str(path) in line for path, line in zip(broken, told, strict=True))
    assert [str(broken[1]) in finding.message for finding in run(config, 2)].count(True) == 0


def test_of_many_broken_images_the_first_are_named_and_all_counted() -> None:
    class Broken:
        def __len__(self) -> int:
            return 30

        def read(self, index: int) -> torch.Tensor:
            raise DataError(f"{index} is broken")

    count, broken = look_at_images(Broken(), every_image=True)
    lines = [str(error) for error in broken]
    assert count == 30 and lines[0] == "0 is broken" and len(lines) == 21
    assert lines[-1] == "and 10 images more can't be read"


def test_a_disk_without_an_answer_alone_is_worth_another_try(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "WAITS_SECONDS", ())
    assert exit_code(teacher_making(tmp_path, images)) == 0
    places.without_answer(images / "train" / "cat" / "2.jpg")
    findings = teacher_making(tmp_path, images)
    assert list(failed(findings)) == ["data"] and exit_code(findings) == 75
    assert exit_code(teacher_making(tmp_path, images, ranks=3)) == 2  # of several the one that is to be mended

    def gone(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", "weights")

    monkeypatch.setattr("dmt_ds.commands.checks.doctor.build_task", gone)
    findings = teacher_making(tmp_path, images)
    assert list(failed(findings)) == ["data", "student"] and exit_code(findings) == 75

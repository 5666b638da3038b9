"""`dmt-ds judge`: the run's own scores from the model that it left, on the run's images or others; what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from dmt_ds.commands.readouts.judge import check_log_name
from dmt_ds.commands.readouts.judge_source import find_model_to_judge
from dmt_ds.data.digits import DigitsSource
from dmt_ds.errors import ConfigError
from dmt_ds.run_files import DONE
from tests import processes, tiny_run
from tests.tiny_coco import needs_pycocotools, write_coco
from tests.tiny_scenes import CLASSES, write_ade

pytestmark = pytest.mark.distributed

NUM_STEPS, EARLY = 4, 2
LONG, HALF = 30, 15
"""Of the classifier, which is to answer more than one class."""
NUM_TRAIN, NUM_VAL, NUM_TEST = 160, 101, 61
"""Odd, so that two ranks have unlike shares."""
TRAIN = {"steps": NUM_STEPS, "global_batch_size": 8, "micro_batch_size": 8, "log_every_steps": 10}
STUDENT = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "drop_path": 0.0}
UNMIXED = {"mixup": 0, "cutmix": 0, "erasing": 0, "rand_augment_magnitude": 0}
QUIET = {"enabled": False, "pictures": False}


def write_digits(folder: Path) -> Path:
    """Real digits as a folder a class: `train` and `val` of all ten, `test` without the last one."""
    sources = {"train": DigitsSource("train"), "val": DigitsSource("val"), "test": DigitsSource("val")}
    splits = {"train": range(NUM_TRAIN), "val": range(NUM_VAL), "test": range(NUM_VAL, 360)}
    for split, rows in splits.items():
        source = sources[split]
        kept = [row for row in rows if split != "test" or source.label(row) < 9]
        for name in "0123456789" if split != "test" else "012345678":
            (folder / split / name).mkdir(parents=True)
        for row in kept[: NUM_TEST if split == "test" else None]:
            pixels = source.read(row).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / split / str(source.label(row)) / f"{row}.png")
    return folder


def train(folder: Path, task: str, data: dict[str, Any], **sections: Any) -> Path:
    """A run of a few steps, with a checkpoint and scores on the way."""
    settings: dict[str, Any] = {
        "task": task,
        "name": task,
        "output_dir": str(folder / "run"),
        "data": {"source": "folder", "val_split": "val", "num_workers": 0, "horizontal_flip": 0, **data},
        "student": STUDENT,
        "optim": {"base_lr": 0.1, "warmup_steps": 1},
        "train": {**TRAIN, "deepspeed": "student_zero2_fp32", "save_every_steps": EARLY, "keep_checkpoints": 2},
        "tracking": QUIET,
    }
    settings |= {key: {**settings.get(key, {}), **value} for key, value in sections.items()}
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    processes.run(tiny_run.pretrain(folder / "recipe.yaml"))
    return folder / "run"


def judge(run: Path, *more: object, processes_: int = 1) -> dict[str, Any]:
    """What the command prints for programs."""
    done = processes.run(["-m", "dmt_ds", "judge", "-e", str(run), "--json", *map(str, more)], processes_)
    return dict(json.loads(done.stdout))


def refused(run: Path, *more: object) -> str:
    """The one line of a refusal."""
    done = processes.run(["-m", "dmt_ds", "judge", "-e", str(run), *map(str, more)], check=False)
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = processes.errors(done.stderr)
    assert "Traceback" not in done.stderr
    return line


def evaluated(run: Path, step: int, prefix: str = "") -> dict[str, float]:
    """The run's own scores at a step, by their names in `eval/`."""
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {name: value for point in points if point["step"] == step for name, value in point["metrics"].items()}
    start = f"eval/{prefix}"
    found = {name.removeprefix(start): value for name, value in names.items() if name.startswith(start)}
    return {name: value for name, value in found.items() if not name.endswith("_best")}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose running mean is published."""
    folder = tmp_path_factory.mktemp("classified")
    digits = write_digits(folder / "digits")
    own = {"ema_decay": 0.9, "pooling": "patch_mean", **UNMIXED}
    data = {"path": str(digits), "image_size": 16}
    size = 16
    longer = {"steps": LONG, "save_every_steps": HALF, "global_batch_size": size, "micro_batch_size": size}
    often = {"eval_every_epochs": HALF * size / NUM_TRAIN}
    return train(folder / "one", "classify", data, classify=own, train=longer | often, optim={"base_lr": 0.064})


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmented")
    data = {"path": str(write_ade(folder / "ade")), "train_split": "training", "val_split": "validation"}
    own = {"channels": 12, "auxiliary_channels": 8, "short_side": 30}
    return train(folder / "one", "segment", {**data, "image_size": 24}, segment=own)


@pytest.fixture(scope="module")
def detected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detected")
    own = {
        **{"short_sides": [48], "max_side": 96, "eval_short_side": 64, "neck_width": 16, "head_width": 32},
        **{"head_convs": 1, "anchor_sizes": [8, 16, 24, 32, 48], "anchor_samples": 64, "box_samples": 32},
        **{"num_proposals": 50, "score_threshold": 0.0, "max_detections": 30, "window_size": 3, "num_global_blocks": 1},
    }
    coco = write_coco(folder / "coco", num_val=5)
    student = {**STUDENT, "positions": "learned"}
    settings = {"detect": own, "student": student, "train": {"global_batch_size": 4, "micro_batch_size": 2}}
    return train(folder / "one", "detect", {"path": str(coco), "image_size": 16}, **settings)


# The same scores as the run's own


def test_a_classifier_is_judged_as_the_run_judged_it_and_nothing_is_written(classified: Path) -> None:
    before = contents(classified)
    told = judge(classified)
    assert contents(classified) == before
    assert told["scores"] == evaluated(classified, LONG, "ema_")
    assert told["model"] | {"source": ""} == {
        **{"source": "", "run": "classify", "task": "classify", "step": LONG},
        **{"running_mean": True, "precision": "fp32"},
    }
    assert told["data"]["num_images"] == NUM_VAL and told["data"]["split"] == "val"


def test_a_checkpoint_on_the_way_has_the_scores_of_its_step(classified: Path) -> None:
    checkpoint = classified / f"checkpoints/step{HALF:08d}"
    told = judge(checkpoint)
    assert told["model"]["step"] == HALF
    assert told["scores"] == evaluated(classified, HALF, "ema_")
    assert told["scores"] != {name: evaluated(classified, HALF)[name] for name in told["scores"]}
    assert find_model_to_judge(str(checkpoint / "classifier"), []).folder == checkpoint / "classifier"


def test_two_processes_judge_as_one_on_another_split_that_lacks_the_last_class(classified: Path) -> None:
    alone, two = (judge(classified / "classifier", "data.val_split=test", processes_=n) for n in (1, 2))
    assert alone["data"]["num_images"] == NUM_TEST
    assert two == alone


def test_labels_of_the_training_split_are_not_needed(classified: Path, tmp_path: Path) -> None:
    digits = classified.parents[1] / "digits"
    shutil.copytree(digits / "val", tmp_path / "val")
    told = judge(classified, f"data.path={tmp_path}")
    assert told["scores"] == evaluated(classified, LONG, "ema_")


def test_a_frozen_encoders_head_and_weights_of_bf16_are_judged_as_in_the_run(tmp_path: Path) -> None:
    encoder = tiny_run.make_teacher(tmp_path / "encoder", seed=0)
    digits = write_digits(tmp_path / "digits")
    student = {"init_from": str(encoder), "embed_dim": 48}
    data, own = {"path": str(digits), "image_size": 16}, {"frozen": True, **UNMIXED}
    run = train(tmp_path / "probe", "classify", data, classify=own, student=student)
    assert judge(run)["scores"] == pytest.approx(evaluated(run, NUM_STEPS))
    half = {"deepspeed": "student_zero2_bf16", "steps": 1, "save_every_steps": 10}
    for name, decay in (("plain", 0.0), ("mean", 0.5)):
        run = train(tmp_path / name, "classify", data, classify={"ema_decay": decay}, train=half)
        told = judge(run)
        assert told["model"]["precision"] == "bf16"
        assert told["scores"] == {k: evaluated(run, 1, "ema_" if decay else "")[k] for k in told["scores"]}


def test_a_segmenter_is_judged_as_the_run_judged_it_on_one_and_two_processes(segmented: Path, tmp_path: Path) -> None:
    alone, two = judge(segmented, "-o", tmp_path / "out"), judge(segmented, processes_=2)
    own = evaluated(segmented, NUM_STEPS)
    assert alone["scores"] == {name: own[name] for name in ("miou", "aacc", "macc")}
    assert alone["baselines"] == {name: own[name] for name in ("miou_of_majority", "aacc_of_majority")}
    assert two["scores"] == pytest.approx(alone["scores"], abs=1e-6)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"scores.json", "confusion.csv", "confusion.png", "classes.csv", "masks.png"}
    assert json.loads((tmp_path / "out/scores.json").read_text()) == alone
    rows = (tmp_path / "out/classes.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["class", *CLASSES]
    assert judge(segmented, "segment.test_window=whole")["scores"] != alone["scores"]


@needs_pycocotools
def test_a_detector_is_judged_as_the_run_judged_it_on_one_and_two_processes(detected: Path, tmp_path: Path) -> None:
    alone, two = judge(detected, "-o", tmp_path / "out"), judge(detected, processes_=2)
    own = evaluated(detected, NUM_STEPS)
    assert alone["scores"] == {name: own[name] for name in alone["scores"]} and "mask_ap" in alone["scores"]
    assert two["scores"] == pytest.approx(alone["scores"], abs=1e-6)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.json", "objects.png"}
    assert judge(detected, "data.val_split=train")["data"]["num_images"] == 8


# What it leaves, where it is asked to


def test_a_folder_gets_scores_and_pictures_and_nothing_in_it_is_overwritten(classified: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = judge(classified, "-o", out)
    kept = json.loads((out / "scores.json").read_text())
    assert kept == told
    assert {"torch", "timm"} <= set(kept["libraries"]) and kept["date"][:2] == "20"
    assert {"confusion.csv", "confusion.png", "answers_wrong.png"} <= {path.name for path in out.iterdir()}
    cells = [line.split(",")[1:] for line in (out / "confusion.csv").read_text().splitlines()[1:]]
    assert np.array(cells, dtype=int).sum() == NUM_VAL
    (out / "scores.json").unlink()
    assert f"{out / 'confusion.csv'}: is there already" in refused(classified, "-o", out)
    assert not (out / "scores.json").exists()


def test_the_table_has_percent_and_says_what_was_judged(classified: Path) -> None:
    done = processes.run(["-m", "dmt_ds", "judge", "-e", str(classified)])
    heading, columns, top1, _ = done.stdout.splitlines()
    assert heading.startswith(f"classifier of {classified} (step {LONG}, running mean of the weights) on folder ")
    assert heading.endswith(f"split val: {NUM_VAL} images")
    assert columns.split() == ["metric", "%"]
    assert top1.split() == ["top1", f"{100 * evaluated(classified, LONG, 'ema_')['top1']:.2f}"]


@pytest.fixture
def copied(classified: Path, tmp_path: Path) -> Path:
    shutil.copytree(classified, tmp_path / "run")
    return tmp_path / "run"


def test_scores_are_added_to_the_runs_record_under_a_name_of_their_own(copied: Path) -> None:
    own = evaluated(copied, LONG, "ema_")
    checkpoint = copied / f"checkpoints/step{HALF:08d}"
    told = judge(checkpoint, "data.val_split=test", "--log-as", "test")
    assert tiny_run.losses(copied, "test/top1") == {HALF: told["scores"]["top1"]}
    assert evaluated(copied, LONG, "ema_") == own


@pytest.mark.parametrize("name", ["eval", "train", "perf", "test/top1", "", "2", "a b", "é"])
def test_names_that_are_the_runs_own_or_no_plain_words_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--log-as "):
        check_log_name(name)


def test_plain_words_are_names() -> None:
    for name in ("test", "imagenet_v2", "v2", "imagenet-r"):
        check_log_name(name)


# What is judged, and what is refused


def test_an_unfinished_run_is_judged_at_its_newest_checkpoint(copied: Path) -> None:
    (copied / DONE).unlink()
    shutil.rmtree(copied / "classifier")
    assert find_model_to_judge(str(copied), []).folder == copied / f"checkpoints/step{LONG:08d}/classifier"
    shutil.rmtree(copied / f"checkpoints/step{LONG:08d}")
    assert find_model_to_judge(str(copied), []).step == HALF
    (copied / f"checkpoints/step{HALF:08d}/manifest.json").unlink()
    with pytest.raises(ConfigError, match="is no complete checkpoint"):
        find_model_to_judge(str(copied / f"checkpoints/step{HALF:08d}"), [])
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(ConfigError, match="has not finished, and has saved nothing yet"):
        find_model_to_judge(str(copied), [])


def test_what_is_no_model_with_a_head_in_a_run_is_refused(classified: Path, copied: Path, tmp_path: Path) -> None:
    encoder = tiny_run.make_teacher(tmp_path / "encoder", seed=0)
    (encoder / "config.yaml").write_text(yaml.safe_dump({"task": "mae"}))
    for source in (encoder, encoder / "backbone", classified / "backbone"):
        with pytest.raises(ConfigError, match=f"without a head.*`dmt-ds evaluate -e {source}`"):
            find_model_to_judge(str(source), [])
    shutil.copytree(classified / "classifier", tmp_path / "classifier")
    with pytest.raises(ConfigError, match=r"classifier: lies in no run.*name the run that it comes from"):
        find_model_to_judge(str(tmp_path / "classifier"), [])
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        find_model_to_judge(str(tmp_path / "nowhere"), [])
    shutil.rmtree(copied / "classifier")
    with pytest.raises(ConfigError, match="there is no classifier in it; name the run"):
        find_model_to_judge(str(copied), [])
    with pytest.raises(ConfigError, match="is no complete checkpoint"):
        find_model_to_judge(str(copied / "checkpoints"), [])


def test_settings_of_the_model_itself_are_refused_and_those_of_training_do_not_matter(classified: Path) -> None:
    given = ["student.depth=3", "classify.pooling=class", "data.image_size=32", "augment.mean=[0.5,0.5,0.5]"]
    with pytest.raises(ConfigError) as caught:
        find_model_to_judge(str(classified), given)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "student.depth=3: the model was trained with 2; leave the setting out" in lines
    found = find_model_to_judge(str(classified), ["student.depth=2", "optim.base_lr=1", "train.steps=9"])
    assert found.config.train.steps == 9


def test_settings_of_each_kinds_head_are_refused(segmented: Path) -> None:
    with pytest.raises(ConfigError, match=r"segment\.channels=16: the model was trained with 12"):
        find_model_to_judge(str(segmented), ["segment.channels=16"])


def test_a_split_that_digits_do_not_have_is_refused(copied: Path) -> None:
    file = copied / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["data"] |= {"source": "digits", "val_split": "validation"}
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="digits has no other split"):
        find_model_to_judge(str(copied), ["data.val_split=test"])


def test_images_of_other_classes_are_refused_by_the_first_difference(
    classified: Path, segmented: Path, tmp_path: Path
) -> None:
    shutil.copytree(classified.parents[1] / "digits/val", tmp_path / "val")
    (tmp_path / "val/3").rename(tmp_path / "val/three")
    assert "class 3 is '4' of the images and '3' of the model" in refused(classified, f"data.path={tmp_path}")
    (tmp_path / "val/three").rename(tmp_path / "val/3")
    (tmp_path / "val/next").mkdir()
    shutil.copy(next((tmp_path / "val/1").iterdir()), tmp_path / "val/next")
    assert "the images have 11 classes, the model has 10" in refused(classified, f"data.path={tmp_path}")
    ade = write_ade(tmp_path / "ade")
    (ade / "classes.json").write_text(json.dumps(CLASSES[:2]))
    assert "the images have 2 classes, the model has 3" in refused(segmented, f"data.path={ade}")


def test_a_broken_image_is_named(classified: Path, tmp_path: Path) -> None:
    shutil.copytree(classified.parents[1] / "digits/val", tmp_path / "val")
    broken = next((tmp_path / "val/5").iterdir())
    broken.write_bytes(b"no image")
    assert str(broken) in refused(classified, f"data.path={tmp_path}")


def test_images_without_labels_are_refused(classified: Path, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "val/1.png")
    assert "the validation images have no labels" in refused(classified, f"data.path={tmp_path}")

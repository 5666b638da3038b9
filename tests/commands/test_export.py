"""`dmt-ds export` on the folders that runs leave: what is written, what the card says, what is refused."""

import json
from pathlib import Path

import pytest
import timm
import torch
import yaml
from click.testing import CliRunner

from dmt_ds.cli import main
from dmt_ds.commands.export import CARD_FILE, run
from dmt_ds.commands.training.run_record import public_name
from dmt_ds.config.load import load_config, to_yaml
from dmt_ds.config.schema import DataConfig
from dmt_ds.downstream.classifier import Classifier
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.classifier_folder import save_classifier
from dmt_ds.models.vit import build_vit
from dmt_ds.run_files import DONE
from dmt_ds.tracking.tracker import JsonlTracker
from tests.commands.finished_run import IBOT, MAE, STEP, export, make_run
from tests.models import tiny


def card_of(folder: Path, form: str = "timm") -> tuple[dict[str, object], str]:
    """Front matter and text."""
    (written,) = run(str(folder), [form], folder.parent / "out")
    _, front, text = (written.folder / CARD_FILE).read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_format_is_a_folder_that_loads_by_itself(tmp_path):
    make_run(tmp_path / "run")
    result = export(tmp_path / "run", "--format", "timm", "-f", "transformers", "-f", "timm")
    assert result.exit_code == 0, result.output
    exported = tmp_path / "run" / "export"
    assert sorted(path.name for path in exported.iterdir()) == ["timm", "transformers"]
    assert [line.split(":")[0] for line in result.output.splitlines()] == [
        str(exported / "timm"),
        str(exported / "transformers"),
    ]
    original = timm.create_model(f"local-dir:{tmp_path / 'run' / 'backbone'}", pretrained=True).eval()
    again = timm.create_model(f"local-dir:{exported / 'timm'}", pretrained=True).eval()
    assert torch.equal(tiny.tokens(again), tiny.tokens(original))


@pytest.mark.parametrize(
    ("setting", "told", "left_out"),
    [
        ("optim.warmup_steps=40", ["warmup_steps: 40", "betas"], ["warmup_epochs", "decay_at", " momentum:"]),
        ("optim.schedule=steps", ["warmup_epochs", "decay_at"], ["warmup_steps", " momentum:"]),
        ("optim.name=sgd", [" momentum:"], ["betas", "eps:"]),
    ],
)
def test_the_card_leaves_out_settings_without_effect(tmp_path, setting, told, left_out):
    _, text = card_of(make_run(tmp_path / "run", setting))
    assert all(key in text for key in told) and not any(key in text for key in left_out)


def test_another_format_comes_beside_the_first_one_and_nothing_is_overwritten(tmp_path):
    make_run(tmp_path / "run")
    assert export(tmp_path / "run", "-f", "timm", "-o", tmp_path / "out").exit_code == 0
    before = (tmp_path / "out" / "timm" / "model.safetensors").stat().st_mtime_ns
    result = export(tmp_path / "run", "-f", "transformers", "-f", "timm", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{tmp_path / 'out' / 'timm'}: is there already; remove it" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["timm"]
    assert export(tmp_path / "run", "-f", "transformers", "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "timm" / "model.safetensors").stat().st_mtime_ns == before


def test_the_card_of_a_student_of_a_non_commercial_teacher_says_so_twice(tmp_path):
    front, text = card_of(make_run(tmp_path / "run"))
    assert front["license"] == "cc-by-nc-4.0"
    assert "**Not for commercial use.** It derives from non-commercial weights: mae (CC-BY-NC-4.0)." in text


def test_the_card_of_a_student_of_free_teachers_has_their_licence(tmp_path):
    front, text = card_of(make_run(tmp_path / "run", teachers={"ibot": IBOT}))
    assert front["license"] == "apache-2.0" and "Licence, inherited from what it derives from: apache-2.0." in text
    assert "commercial" not in text


@pytest.mark.parametrize(
    ("licences", "front_matter", "words"),
    [
        (
            (None, "Apache-2.0"),
            {"license": "unknown"},
            "Licence: not known; not stated for t0 (teachers.models.NAME.licence of the run).",
        ),
        (
            ("dinov3-license", "Apache-2.0"),
            {"license": "other", "license_name": "apache-2.0 and dinov3-license"},
            "from what it derives from: apache-2.0 and dinov3-license.",
        ),
        ((None, "CC-BY-NC-SA-4.0"), {"license": "cc-by-nc-sa-4.0"}, "Not for commercial use"),
        ((), {"license": "unknown"}, "no other weights restrict it"),
    ],
)
def test_a_licence_that_is_unknown_or_unusual_is_never_called_free(licences, front_matter, words, tmp_path):
    teachers = {f"t{number}": {"source": "x", "licence": licence} for number, licence in enumerate(licences)}
    front, text = card_of(make_run(tmp_path / "run", teachers=teachers))
    assert front.items() >= front_matter.items()
    assert words in text


def test_the_card_names_teachers_settings_and_versions_but_no_folder_or_host(tmp_path):
    folder = make_run(tmp_path / "run")
    written = run(str(folder), ["timm"], None)[0].folder
    card = (written / CARD_FILE).read_text()
    assert f"| mae | mae\\_vit\\_b.pth | CC-BY-NC-4.0 | `{'ab' * 8}` |" in card
    assert "| ibot | timm:vit\\_base\\_patch16\\_224.ibot | Apache-2.0 |" in card
    assert "Images: photos." in card and "torch 2.15.0" in card and "tfd_weight: 1.0" in card
    everything = b"".join(file.read_bytes() for file in written.iterdir()).decode(errors="replace")
    for private in ("/home/someone", "store-host", "private-host", str(tmp_path)):
        assert private not in everything


def test_the_card_tells_scores_of_these_very_weights_only(tmp_path):
    folder = make_run(tmp_path / "run")
    assert "None was measured with these weights." in card_of(folder)[1]
    tracker = JsonlTracker(folder)
    tracker.log_metrics({"eval/knn_top1": 0.111, "train/loss": 1.0}, STEP - 10)
    tracker.log_metrics({"eval/knn_top1": 0.4567, "eval/select_knn_top1": 0.9, "eval/linear_patch_top5": 0.75}, STEP)
    tracker.log_metrics({"eval/finetune_top1": 0.9}, STEP)  # of another model, made of this encoder
    text = (run(str(folder), ["timm"], tmp_path / "scored")[0].folder / CARD_FILE).read_text()
    assert "| k-NN on the class token, top-1 | 45.67 |" in text
    assert "| linear probe on the mean patch token, top-5 | 75.00 |" in text
    assert "11.1" not in text and "90.0" not in text and "None was measured" not in text


def test_where_the_running_mean_is_the_model_its_scores_are_the_models(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").write_text(to_yaml(load_config(None, ("task=classify", "classify.ema_decay=0.9"))))
    JsonlTracker(folder).log_metrics({"eval/top1": 0.111, "eval/ema_top1": 0.4567}, STEP)
    text = card_of(folder)[1]
    assert "| its own classes, top-1 | 45.67 |" in text and "11.1" not in text


def test_the_teachers_behind_the_weights_it_started_from_are_named(tmp_path):
    started = {"init_from": {"source": "/home/someone/runs/student", "teachers": {"mae": MAE}}}
    text = card_of(make_run(tmp_path / "run", teachers=started))[1]
    assert "(weights it started from) | student |" in text
    assert "| mae, behind init\\_from | mae\\_vit\\_b.pth | CC-BY-NC-4.0 |" in text
    assert "/home/someone" not in text


def test_the_papers_figure_stands_only_beside_a_student_of_its_shape_and_is_called_the_papers(tmp_path):
    assert "The paper reports" not in card_of(make_run(tmp_path / "run"))[1]
    folder = tmp_path / "full"
    config = load_config(None, ("task=dmt", "teachers.models.mae.source=mae.pth", "student.depth=null"))
    vit = build_vit(config.student, 224)
    save_backbone(folder / "backbone", vit.state_dict(), config.student, 224, provenance={"task": "dmt", "step": 1})
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / DONE).write_text("1\n")
    text = (run(str(folder), ["timm"], None)[0].folder / CARD_FILE).read_text()
    assert "The paper reports 75.0 % ImageNet-1K top-1" in text and "That figure is not this model's." in text
    assert "its short side scaled to 256 pixels" in text


def test_crafted_names_break_neither_front_matter_nor_table_nor_fence(tmp_path):
    evil = "a|b\n---\nlicense: mit\n```\n<script>'\"$x$"
    folder = make_run(tmp_path / "run", teachers={evil: {**MAE, "source": "x\n| y"}}, name=evil)
    (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text().replace("arch: vit_tiny", "arch: 'vit_tiny\n\n  ````\n\n  x'")
    )
    front, text = card_of(folder)
    assert front["license"] == "cc-by-nc-4.0" and set(front) == {"license", "library_name", "pipeline_tag", "tags"}
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in table] == [5, 5, 5]
    assert "<script>" not in text.replace("\\<", "")
    fences = [line for line in text.splitlines() if line.startswith("```")]
    assert fences[0] == "```python" and fences[-1] == "`" * 5 and len(fences) == 4
    json.loads((tmp_path / "out" / "timm" / "config.json").read_text())


def test_a_folder_without_a_run_says_that_nothing_more_is_known(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").unlink()
    text = card_of(folder / "backbone")[1]
    assert "CC-BY-NC-4.0" in text and "Settings" not in text and "None was measured" in text


def test_a_classifier_leaves_with_its_classes(tmp_path):
    folder = make_run(tmp_path / "run")
    data = DataConfig(image_size=tiny.IMAGE_SIZE)
    module = Classifier(build_vit(tiny.section(), tiny.IMAGE_SIZE), 3, "class")
    told = {"task": "classify", "teachers": {"init_from": MAE}, "step": STEP}
    save_classifier(
        folder / "classifier", module.timm_state({}), tiny.section(), data, "class", ["a", "b|", "ö"],
        norms_the_mean=module.norms_the_mean, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), provenance=told,
    )  # fmt: skip
    front, text = card_of(folder, "transformers")
    assert front["pipeline_tag"] == "image-classification" and front["license"] == "cc-by-nc-4.0"
    assert "classifier of 3 classes" in text and "AutoModelForImageClassification.from_pretrained" in text
    assert "init\\_from (weights it started from)" in text
    assert json.loads((tmp_path / "out" / "transformers" / "classes.json").read_text()) == ["a", "b|", "ö"]
    config = json.loads((tmp_path / "out" / "transformers" / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b|", "2": "ö"}
    encoder = card_of(folder / "backbone")
    assert encoder[0]["pipeline_tag"] == "image-feature-extraction"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "no such folder; name a run's output folder"),
        ("file", "is a file; name a run's output folder"),
        ("empty", "there is no model in it"),
        ("unfinished", "the run has not finished, and has saved nothing yet"),
    ],
)
def test_what_can_not_leave_is_named_in_one_line(name, reason, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "unfinished")
    (tmp_path / "unfinished" / DONE).unlink()
    result = export(tmp_path / name, "-f", "timm")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"dmt-ds: error: {tmp_path / name}: {reason}")
    assert len(result.stderr.splitlines()) == 1


def test_of_a_familys_folder_the_members_are_named(tmp_path):
    family = tmp_path / "family"
    make_run(family / "tiny")
    make_run(family / "base")
    (family / "config.yaml").write_text((family / "tiny" / "config.yaml").read_text())
    told = f"{family}: is a family's folder; name a member: {family}/base, {family}/tiny\n"
    assert export(family, "-f", "timm").stderr == f"dmt-ds: error: {told}"
    for command in ("evaluate", "data.source=digits", "data.path=null", "-e"), ("teachers", "inspect"):
        assert CliRunner().invoke(main, [*command, str(family)]).stderr.endswith(told)


@pytest.mark.parametrize("name", ["segmenter", "detector"])
def test_what_no_format_can_hold_is_refused_and_its_encoder_leaves_under_its_own_name(name, tmp_path):
    run = make_run(tmp_path / "run")
    (run / name).mkdir()
    (run / name / f"{name}.json").write_text("{}")
    for source in (run, run / name):
        result = export(source, "-f", "timm")
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
        assert f"{source}: its model is a {name}, which no format can hold; name {run}/backbone to" in result.stderr
    assert export(run / "backbone", "-f", "timm", "-o", tmp_path / "out").exit_code == 0


def test_a_failed_export_leaves_nothing_behind(tmp_path):
    make_run(tmp_path / "run", "student.last_block_num_heads=4")
    result = export(tmp_path / "run", "-f", "timm", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "take --format onnx or torch_export" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("timm:vit_base_patch16_224.mae", "timm:vit_base_patch16_224.mae"),
        ("hf:facebook/vit-mae-base", "hf:facebook/vit-mae-base"),
        ("hf:/scratch/me/vit", "hf:vit"),
        ("ILSVRC/imagenet-1k", "ILSVRC/imagenet-1k"),
        ("/data/imagenet/", "imagenet"),
        ("/data/imagenet/*", "imagenet"),
        ("~/teachers/mae.pth", "mae.pth"),
        ("mae.pth", "mae.pth"),
    ],
)
def test_a_path_is_told_by_its_last_part(source, public):
    assert public_name(source) == public

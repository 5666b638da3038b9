import pytest
import torch

from dmt_ds.commands.teachers import convert, inspect_file, list_teachers
from dmt_ds.config.teachers import TeacherConfig
from dmt_ds.errors import WeightsError
from dmt_ds.models.encoders import load_encoder, load_teacher
from dmt_ds.storage import sha256_of
from tests import tiny_run
from tests.models import tiny


@pytest.fixture
def file(tmp_path):
    state = {f"backbone.{key}": value for key, value in tiny.vit().state_dict().items()}
    torch.save({"teacher": state | {"head.mlp.0.weight": torch.ones(2)}, "ibot_loss": {}}, tmp_path / "ibot.pth")
    return tmp_path / "ibot.pth"


def test_the_table_names_every_method_with_its_licence():
    table = list_teachers()
    for name in ("MAE", "MoCo v3", "iBOT", "DINO", "DeiT", "BEiT", "CC-BY-NC-4.0", "Apache-2.0"):
        assert name in table


def test_a_look_into_a_file_tells_layout_shape_and_what_is_dropped(file):
    lines = dict(line.split("  ", 1) for line in inspect_file(file).splitlines())
    found = {name: value.strip() for name, value in lines.items()}
    assert found["layout"] == "ibot (under 'teacher')"
    assert found["width"] == "32"
    assert found["tokens"].startswith("17 ")
    assert found["heads"].startswith("unknown")
    assert found["dropped"] == "head.mlp.* (1)"
    assert found["sha256"] == sha256_of(file)


def test_a_converted_file_is_the_same_teacher_and_knows_its_heads_and_licence(file, tmp_path):
    out = tmp_path / "ibot.safetensors"
    assert "30 tensors" in convert(file, out, num_heads=tiny.HEADS)
    before = load_teacher("a", TeacherConfig(source=str(file), num_heads=tiny.HEADS))
    after = load_teacher("b", TeacherConfig(source=str(out)))
    assert torch.equal(before(tiny.pictures()), after(tiny.pictures()))
    assert (after.record.layout, after.record.licence) == ("ibot", "Apache-2.0")
    with pytest.raises(WeightsError, match="num_heads 4 is asked for"):
        load_teacher("b", TeacherConfig(source=str(out), num_heads=4))


def test_a_file_of_transformers_keeps_what_its_config_says_through_a_conversion(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, image_size=32, patch_size=8,
        layer_norm_eps=1e-2,
    )  # fmt: skip
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    file, out = tmp_path / "model.safetensors", tmp_path / "alone" / "converted.safetensors"
    assert (rows(file)["heads"], rows(file)["LayerNorm epsilon"]) == ("2", "0.01")
    out.parent.mkdir()
    convert(file, out)
    folder, of_file, of_converted = (load_encoder(str(source))(tiny.pictures()) for source in (tmp_path, file, out))
    assert torch.equal(folder, of_file) and torch.equal(folder, of_converted)


def test_conversion_never_overwrites(file, tmp_path):
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(WeightsError, match="exists already"):
        convert(file, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_text() == "mine"


def test_conversion_into_a_folder_that_is_not_there_leaves_nothing(file, tmp_path):
    with pytest.raises(WeightsError, match="can't be written"):
        convert(file, tmp_path / "nowhere" / "out.safetensors")
    with pytest.raises(WeightsError, match=r"must end in \.safetensors"):
        convert(file, tmp_path / "out.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["ibot.pth"]


def test_an_incomplete_file_is_not_converted(file, tmp_path):
    checkpoint = torch.load(file)
    del checkpoint["teacher"]["backbone.norm.bias"]
    torch.save(checkpoint, file)
    with pytest.raises(WeightsError, match=r"missing 'backbone\.norm\.bias'"):
        convert(file, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def rows(source):
    lines = (line.split("  ", 1) for line in inspect_file(source).splitlines())
    return {name: value.strip() for name, value in lines}


def test_a_run_is_told_of_in_the_words_of_a_file(file, tmp_path):
    of_run, of_file = rows(tiny_run.make_teacher(tmp_path / "run", 0)), rows(file)
    assert [name for name in of_file if name not in of_run] == ["LayerNorm epsilon", "tensors"]
    assert [name for name in of_file if name in of_run] == list(of_run)
    assert (of_run["layout"], of_run["width"], of_run["patch"]) == ("dmt_ds", "48", "4 pixels")
    assert (of_run["licence"], of_run["dropped"]) == ("unknown; set licence", "nothing")


@pytest.mark.parametrize("source", ["run", "timm:vit_base_patch16_224.mae", "hf:./run"])
def test_a_part_of_what_has_none_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_run.make_teacher(tmp_path / "run", 0)
    with pytest.raises(WeightsError, match=f"{source}: is not a weights file, .*: leave out --key teacher"):
        inspect_file(source, "teacher")


@pytest.mark.parametrize("source", [".", "timm:vit_base_patch16_224.mae"])
def test_what_is_no_file_is_not_converted(source, tmp_path):
    with pytest.raises(WeightsError, match=f"{source}: is not a weights file; name one, or hf:FOLDER"):
        convert(source, tmp_path / "out.safetensors")


def test_a_folder_without_an_encoder_says_so(tmp_path):
    with pytest.raises(WeightsError, match="no encoder in it"):
        inspect_file(tmp_path)

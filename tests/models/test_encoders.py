from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.config.teachers import TeacherConfig
from dmt_ds.errors import ConfigError, WeightsError
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.encoders import check_same_tokens, load_encoder, load_teacher
from dmt_ds.models.relations import RelationEncoder
from dmt_ds.models.start import start_from
from dmt_ds.models.vit import create, tokens_of
from tests.models import tiny


@pytest.fixture(scope="module")
def vit():
    return tiny.vit()


@pytest.fixture(scope="module")
def file(vit, tmp_path_factory):
    path = tmp_path_factory.mktemp("teachers") / "mae.pth"
    torch.save({"model": vit.state_dict()}, path)
    return path


@pytest.fixture
def run_folder(vit, tmp_path):
    save_backbone(
        tmp_path / "run" / "backbone",
        vit.state_dict(),
        tiny.section(),
        tiny.IMAGE_SIZE,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        provenance={},
    )
    return tmp_path / "run"


def _section(source, **changes) -> TeacherConfig:
    return TeacherConfig.model_validate({"source": str(source), "num_heads": tiny.HEADS} | changes)


def _expected(vit, images, mean, std):
    mean, std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        return tokens_of(vit, (images / 255 - mean) / std)


def test_a_teacher_normalises_pixels_by_its_own_mean_and_std(vit, file):
    images, mean, std = tiny.pictures(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    own = load_teacher("mae", _section(file, mean=mean, std=std), tiny.IMAGE_SIZE)
    usual = load_teacher("mae", _section(file), tiny.IMAGE_SIZE)
    torch.testing.assert_close(own(images), _expected(vit, images, mean, std), atol=1e-5, rtol=0)
    imagenet = _expected(vit, images, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(usual(images), imagenet, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "images",
    [
        tiny.pictures() / 255,
        tiny.normalised().bfloat16(),
        tiny.pictures().long(),
        tiny.pictures()[0],
        tiny.pictures()[:, :1],
    ],
    ids=lambda images: f"{list(images.shape)} {images.dtype}",
)
def test_images_that_are_not_the_pixels_of_a_batch_are_refused(file, images):
    teacher, other = (load_teacher("mae", _section(file)) for _ in range(2))
    for model in (teacher, torch.compile(teacher, backend="eager"), RelationEncoder(other)):
        with pytest.raises(TypeError, match=r"images are \[.*\] torch\..*, must be \[B, 3, H, W\] torch\.uint8"):
            model(images)


def test_a_compiled_teacher_is_one_graph_and_gives_the_same_tokens(file):
    teacher = load_teacher("mae", _section(file))
    compiled = torch.compile(teacher, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tiny.pictures()), teacher(tiny.pictures()))


def test_an_encoder_is_loaded_from_a_path(run_folder):
    assert load_encoder(run_folder).record.sha256 == load_encoder(str(run_folder)).record.sha256


def test_a_bf16_teacher_still_normalises_in_float32(file):
    teacher = load_teacher("mae", _section(file)).to(torch.bfloat16)
    assert {b.dtype for b in (teacher.scale, teacher.shift)} == {torch.float32}
    assert teacher(tiny.pictures()).dtype == torch.bfloat16
    expected = load_teacher("mae", _section(file))
    assert torch.equal(teacher.scale, expected.scale)


def test_a_teacher_is_frozen_in_evaluation_and_holds_nothing_but_its_vit(vit, file):
    teacher = load_teacher("mae", _section(file)).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert set(teacher.state_dict()) == {f"vit.{key}" for key in vit.state_dict()}


def test_a_teachers_record_says_what_it_is(file):
    record = load_teacher("mae", _section(file)).record
    params = record.as_params()
    assert (record.layout, record.licence, len(record.sha256)) == ("mae", "CC-BY-NC-4.0", 64)
    assert params["embed_dim"] == tiny.WIDTH
    assert params["num_heads"] == tiny.HEADS
    assert load_teacher("mae", _section(file, licence="MIT")).record.licence == "MIT"


@pytest.mark.parametrize(
    ("width", "names", "said", "is_guess"),
    [
        (64, "timm", {}, True),
        (64, "timm", {"num_heads": 2}, False),
        (192, "timm", {}, True),  # may be anybody's
        (192, "timm", {"arch": "vit_tiny"}, False),
        (192, "mae", {}, False),  # as its authors have them
        (64, "mae", {}, True),  # which they never published
    ],
)
def test_heads_that_only_the_width_speaks_for_are_a_guess(width, names, said, is_guess, tmp_path):
    depth = 12 if "arch" in said else 1
    state = tiny.vit(embed_dim=width, depth=depth, num_heads=1, patch_size=16).state_dict()
    torch.save({"model": state} if names == "mae" else state, tmp_path / "some.pth")
    record = load_teacher("some", TeacherConfig(source=str(tmp_path / "some.pth"), **said)).record
    assert (record.layout, record.guessed_heads) == (names, is_guess)


def test_a_folder_says_its_heads(run_folder):
    assert not load_encoder(str(run_folder)).record.guessed_heads


def test_a_finished_run_is_a_teacher_with_its_own_normalisation(vit, run_folder):
    for source in (run_folder, run_folder / "backbone"):
        teacher = load_encoder(str(source), tiny.IMAGE_SIZE)
        assert (teacher.record.layout, teacher.record.mean) == ("dmt_ds", (0.1, 0.2, 0.3))
        expected = _expected(vit, tiny.pictures(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        torch.testing.assert_close(teacher(tiny.pictures()), expected, atol=1e-5, rtol=0)


def _checkpoint(run, step: int) -> Path:
    """One with an encoder of its own."""
    folder = run / "checkpoints" / f"step{step:08d}"
    save_backbone(folder / "backbone", tiny.vit(seed=step).state_dict(), tiny.section(), tiny.IMAGE_SIZE, provenance={})
    return folder


def _has_weights_of(source, seed: int) -> bool:
    return torch.equal(load_encoder(str(source)).vit.cls_token, tiny.vit(seed=seed).cls_token)


def test_a_run_that_has_not_finished_is_its_newest_checkpoint(tmp_path, caplog):
    for step in (5, 10, 15):  # a save that was cut short may leave a folder that `latest` does not name
        _checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / "latest").write_text("step00000010\n")
    assert _has_weights_of(tmp_path, 10)
    assert "has not finished; using its newest checkpoint" in caplog.text
    assert "step00000010" in caplog.text


def test_a_finished_run_is_not_one_of_its_checkpoints(run_folder):
    _checkpoint(run_folder, 5)
    (run_folder / "checkpoints" / "latest").write_text("step00000005")
    assert _has_weights_of(run_folder, 0)


def test_a_checkpoint_is_a_teacher_too(tmp_path):
    assert _has_weights_of(_checkpoint(tmp_path, 5), 5)


@pytest.mark.parametrize("latest", [None, "step00000005"])
def test_a_run_that_has_saved_no_encoder_is_no_teacher(latest, tmp_path):
    if latest:
        (tmp_path / "checkpoints" / latest).mkdir(parents=True)
        (tmp_path / "checkpoints" / "latest").write_text(latest)
    with pytest.raises(WeightsError, match=r"no encoder in it.*the run has not saved yet") as caught:
        load_encoder(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("registers", [0, 4])
def test_a_teacher_of_another_image_size_gets_its_positions_interpolated_if_asked(registers, tmp_path):
    """DINOv2's, say: made for 518 pixels, used at 224."""
    model_args = {"img_size": 42, "patch_size": 14, "embed_dim": 64, "depth": 1, "num_heads": 1, "init_values": 1e-5}
    large = create(
        "vit_tiny_patch16_224", reg_tokens=registers, no_embed_class=registers > 0, num_classes=0, **model_args
    )
    with torch.no_grad():
        large.pos_embed.fill_(2.0)  # alike everywhere, so that any interpolation keeps it
    file = tmp_path / "dinov2.pth"
    torch.save(large.state_dict(), file)
    section = TeacherConfig(source=str(file), resize_positions=True)
    teacher = load_teacher("dinov2", section, 56)
    assert teacher.record.shape.image_size == 56
    images = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = teacher(images)
    assert tokens.shape == (2, 17, 64)
    grown = create(
        "vit_tiny_patch16_224", reg_tokens=registers, no_embed_class=registers > 0, num_classes=0,
        **(model_args | {"img_size": 56}),
    ).eval()  # fmt: skip
    state = large.state_dict()
    state["pos_embed"] = torch.full_like(grown.pos_embed, 2.0)
    grown.load_state_dict(state)
    torch.testing.assert_close(tokens, tokens_of(grown, teacher.normalised(images)))
    with pytest.raises(
        WeightsError, match=r"image_size 50 is not a multiple of its patches of 14 pixels: take 42 or 56"
    ):
        load_teacher("dinov2", section, 50)
    assert load_teacher("dinov2", section).record.shape.image_size == 42, "its own size where none is asked for"


def test_another_patch_grid_is_refused_with_both_grids(file):
    with pytest.raises(
        WeightsError, match=r"teacher 'mae'.*4 x 4 grid.*image_size 64 gives 8 x 8.*data\.image_size=32"
    ):
        load_teacher("mae", _section(file), 64)


def test_other_heads_than_a_runs_are_refused(run_folder):
    with pytest.raises(WeightsError, match="num_heads 4 is asked for, the model has 2"):
        load_teacher("own", _section(run_folder, num_heads=4))


def _named(path, **changes):
    model = tiny.vit(**changes)
    torch.save({"model": model.state_dict()}, path)
    return load_teacher(path.stem, _section(path))


def test_teachers_of_different_token_counts_are_refused_with_both(file, tmp_path):
    teachers = {"mae": load_teacher("mae", _section(file)), "ibot": _named(tmp_path / "ibot.pth", patch_size=16)}
    with pytest.raises(WeightsError, match="teachers 'mae' and 'ibot' give 17 and 5 tokens"):
        check_same_tokens(teachers, same_width=False)


def test_teachers_of_different_widths_are_refused_unless_they_stay_apart(file, tmp_path):
    teachers = {"mae": load_teacher("mae", _section(file)), "ibot": _named(tmp_path / "ibot.pth", embed_dim=48)}
    check_same_tokens(teachers, same_width=False)
    with pytest.raises(WeightsError, match=r"'mae' and 'ibot' are 32 and 48 wide.*distill\.fusion=concat"):
        check_same_tokens(teachers, same_width=True)


def test_an_unknown_timm_tag_is_refused_with_near_ones():
    with pytest.raises(ConfigError, match=r"vit_base_patch16_224\.mae"):
        load_encoder("timm:vit_base_patch16_224.mea")


def test_weights_that_cannot_be_fetched_are_one_line_with_the_remedy(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="download it once on a machine with network access") as caught:
        load_encoder("timm:vit_tiny_patch16_224.augreg_in21k")
    assert "\n" not in str(caught.value)


def test_a_student_starts_from_an_encoder_of_its_own_shape(file, run_folder):
    vit = tiny.vit(seed=5)
    start_from(vit, str(run_folder), tiny.IMAGE_SIZE)
    torch.testing.assert_close(tiny.tokens(vit), tiny.tokens(tiny.vit()), atol=0, rtol=0)
    with pytest.raises(WeightsError, match=r"student\.init_from.*depth 3 against 2"):
        start_from(tiny.vit(depth=3), str(run_folder), tiny.IMAGE_SIZE)
    sizes = tiny.section().model_dump(include={"embed_dim", "depth", "num_heads", "patch_size"})
    narrow = create("vit_tiny_patch16_224", num_classes=0, img_size=tiny.IMAGE_SIZE, mlp_ratio=2.0, **sizes)
    with pytest.raises(WeightsError, match=r"another ViT: 'blocks\.0\.mlp\.fc1\.bias' \[\d+\] on one side only"):
        start_from(narrow, str(run_folder), tiny.IMAGE_SIZE)


def test_a_damaged_teacher_is_named_with_its_file(run_folder):
    path = run_folder / "backbone" / "model.safetensors"
    state = load_file(path)
    del state["norm.weight"]
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"teacher 'own'.*model\.safetensors.*'norm\.weight'"):
        load_teacher("own", _section(run_folder))

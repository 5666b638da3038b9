"""UPerNet on a ViT: which blocks, which gradients, what windows see; a few steps learn drawn scenes."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dmt_ds.config.segmentation import SegmentConfig
from dmt_ds.data.loader import every_image
from dmt_ds.data.map_batches import EvalMapMaker, LabelMaps
from dmt_ds.downstream.region_overlap import overlap_of
from dmt_ds.downstream.segmentation import pixel_loss
from dmt_ds.downstream.segmenter import Scores, blocks_of, see
from dmt_ds.downstream.segmenter_folder import SEGMENTER_FILE, load_segmenter, save_segmenter
from dmt_ds.engine.task import AnnotatedTask, Progress
from dmt_ds.errors import ConfigError, WeightsError
from tests.downstream import segmented
from tests.downstream.segmented import CROP
from tests.tiny_scenes import CLASSES, write_ade


@pytest.fixture(scope="module")
def ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ade(tmp_path_factory.mktemp("scenes") / "ade")


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (3, 5, 7, 11)), (6, (1, 2, 3, 5)), (24, (7, 11, 15, 23)), (2, (0, 0, 0, 1))]
)
def test_blocks_are_those_of_the_papers_in_proportion(depth: int, blocks: tuple[int, ...]) -> None:
    assert blocks_of(SegmentConfig(), depth) == blocks


def test_a_block_that_the_encoder_lacks_is_refused_by_name() -> None:
    section = segmented.SECTION.model_copy(update={"blocks": (3, 5, 7, 11)})
    with pytest.raises(
        ConfigError, match=r"segment.blocks \[3, 5, 7, 11\]: the encoder has 6 blocks, 0 to 5: take four"
    ):
        segmented.task(blocks=section.blocks)
    assert blocks_of(section, 12) == section.blocks


def test_the_maps_are_the_blocks_patch_tokens_before_any_norm() -> None:
    module = segmented.task().module.eval()
    vit, seen = module.vit, []
    for block in vit.blocks:
        block.register_forward_hook(lambda _block, _inputs, output: seen.append(output))
    with torch.no_grad():
        maps = module._maps(torch.randn(2, 3, 24, 32))
    for number, one in zip((1, 2, 3, 5), maps, strict=True):
        assert torch.equal(one, seen[number][:, 1:].transpose(1, 2).reshape(2, 48, 6, 8))


def test_every_weight_that_is_trained_has_a_gradient_and_the_unused_norm_is_none_of_them(ade: Path) -> None:
    of = segmented.task()
    of.losses(of.module, segmented.batch(ade), Progress(0, 10), True).loss.backward()
    without = [name for name, value in of.module.named_parameters() if value.requires_grad and value.grad is None]
    assert not without
    assert set(of.untouched) == {"vit.norm.weight", "vit.norm.bias", "vit.pos_embed"}


def test_layers_are_numbered_by_depth_and_the_heads_are_last() -> None:
    of = segmented.task()
    assert isinstance(of, AnnotatedTask)
    layers = of.layers()
    assert set(layers) == {name for name, _ in of.module.named_parameters()}
    assert layers["vit.patch_embed.proj.weight"] == 0
    assert layers["vit.blocks.2.mlp.fc1.weight"] == 3
    assert {layers[name] for name in layers if not name.startswith("vit.")} == {7}


def test_the_loss_is_the_mean_over_all_pixels_with_nothing_for_the_ignored() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, 5, generator=generator)
    maps = torch.randint(0, 3, (2, 4, 5), generator=generator)
    maps[0, :2] = 255
    total = 0.0
    for image in range(2):
        for row in range(4):
            for column in range(5):
                if (label := int(maps[image, row, column])) != 255:
                    total -= float(scores[image, :, row, column].log_softmax(dim=0)[label])
    assert float(pixel_loss(scores, maps)) == pytest.approx(total / 40, rel=1e-5)
    assert float(pixel_loss(scores, torch.full_like(maps, 255))) == 0


def test_the_loss_is_the_sum_of_both_heads_by_their_weights(ade: Path) -> None:
    batch, of = segmented.batch(ade), segmented.task()
    out = of.losses(of.module, batch, Progress(0, 10), True)
    parts = out.metrics["train/loss_segmentation"] + 0.4 * out.metrics["train/loss_auxiliary"]
    assert out.loss.item() == pytest.approx(parts.item())
    alone = segmented.task(auxiliary_weight=0.0)
    assert alone.module.auxiliary_head is None
    assert "train/loss_auxiliary" not in alone.losses(alone.module, batch, Progress(0, 10), True).metrics


def test_what_an_image_does_not_fill_of_its_crop_is_zero_when_the_model_sees_it(ade: Path) -> None:
    of, batch = segmented.task(photometric=True), segmented.batch(ade)
    assert isinstance(batch.target, LabelMaps)
    beyond = torch.ones(8, CROP, CROP, dtype=torch.bool)
    for own, (height, width) in zip(beyond, batch.target.sizes, strict=True):
        own[:height, :width] = False
    assert (batch.target.maps[beyond] == 255).all()
    seen: list[Tensor] = []

    def model(images: Tensor, seeds: Tensor) -> Scores:
        seen.append(images)
        return of.module(images, seeds)

    of.losses(model, batch, Progress(0, 10), False)
    zero = (seen[0] == 0).all(dim=1)  # [B, H, W]
    assert beyond.any()
    assert torch.equal(zero, beyond)


def pixels(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(24, 24), (20, 13)])
def test_one_window_that_covers_the_image_sees_what_the_whole_sees(size: tuple[int, int]) -> None:
    module = segmented.task().module.eval()
    with torch.no_grad():
        whole, slid = (see(module, pixels(*size), 4, window, 10) for window in (None, 24))
    assert whole.shape == (1, 3, *size)
    assert torch.equal(whole, slid)


def test_windows_are_averaged_where_they_overlap_and_the_last_ends_with_the_image() -> None:
    module = segmented.task().module.eval()
    image, seeds = pixels(24, 40), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        found = see(module, image, 4, 24, 10)
        total, counts = torch.zeros(1, 3, 24, 40), torch.zeros(40)
        for left in (0, 10, 16):
            scores = functional.interpolate(
                module(image[..., left : left + 24], seeds).main, (24, 24), mode="bilinear", align_corners=False
            )
            total[..., left : left + 24] += scores
            counts[left : left + 24] += 1
    torch.testing.assert_close(found, total / counts)


def test_every_pixel_is_seen_whatever_the_stride() -> None:
    def ones(parts: Tensor, _seeds: Tensor) -> Scores:
        return Scores(torch.ones(len(parts), 2, *parts.shape[2:]), None)

    for stride in (1, 7, 16, 40):
        assert torch.equal(see(ones, pixels(37, 61), 4, 16, stride), torch.ones(1, 2, 37, 61))


def answers(of: segmented.SegmentationTask, ade: Path) -> Tensor:
    maker = EvalMapMaker(segmented.images_of(ade).test, segmented.SECTION.short_side, "bilinear")
    return of.confusion(of.module, every_image(maker, 3, 1))


def test_a_few_steps_learn_drawn_scenes_and_the_folder_answers_as_the_model(ade: Path, tmp_path: Path) -> None:
    of = segmented.task(photometric=False)
    optimizer = torch.optim.AdamW([p for p in of.module.parameters() if p.requires_grad], lr=3e-3)
    batch = segmented.batch(ade)
    for _ in range(40):
        optimizer.zero_grad()
        of.losses(of.module, batch, Progress(0, 10), False).loss.backward()
        optimizer.step()
    confusion = answers(of, ade)
    assert int(confusion.sum()) == sum(h * w - 2 * w for h, w in ((40, 56), (33, 50), (45, 37)))
    assert overlap_of(confusion).miou > 0.6
    assert of.module.training
    state = {key: value.detach() for key, value in of.module.state_dict().items()}
    data, folder = segmented.data_of(ade), tmp_path / "segmenter"
    save_segmenter(folder, state, segmented.STUDENT, segmented.SECTION, data, segmented.PLAIN, CLASSES, {"name": "x"})
    saved = load_segmenter(folder)
    assert saved.class_names == CLASSES
    image, _ = segmented.images_of(ade).test.read_pair(1)
    expected = of.answer(of.module, nn.functional.pad(image, (0, 0))[None], image.shape[1:])
    small = saved.view.classes(saved.model, 4, image[None], image.shape[1:])
    assert torch.equal(small, expected)
    assert saved.classes(image, torch.device("cpu")).shape == image.shape[1:]


def test_a_damaged_folder_is_told(ade: Path, tmp_path: Path) -> None:
    of, folder = segmented.task(), tmp_path / "segmenter"
    state = {key: value.detach() for key, value in of.module.state_dict().items()}
    data, plain = segmented.data_of(ade), segmented.PLAIN
    save_segmenter(folder, state, segmented.STUDENT, segmented.SECTION, data, plain, CLASSES, {})
    (folder / SEGMENTER_FILE).write_text(
        (folder / SEGMENTER_FILE).read_text().replace('"channels": 16', '"channels": 8')
    )
    with pytest.raises(WeightsError, match=r"model.safetensors: 'head.bottleneck.*copy the folder again"):
        load_segmenter(folder)
    (folder / SEGMENTER_FILE).write_text("{}")
    with pytest.raises(WeightsError, match=r"segmenter.json: no description of a segmenter \(KeyError"):
        load_segmenter(folder)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "interpolation", None),
        (None, "mean", None),
        ("student", "num_heads", 5),
        ("segment", "blocks", [0, 1, 2, 9]),
    ],
)
def test_a_description_that_nothing_can_be_built_from_is_told_by_its_file(
    ade: Path, tmp_path: Path, section: str | None, key: str, value: object
) -> None:
    folder, data = tmp_path / "segmenter", segmented.data_of(ade)
    save_segmenter(folder, {}, segmented.STUDENT, segmented.SECTION, data, segmented.PLAIN, CLASSES, {})
    told = json.loads((folder / SEGMENTER_FILE).read_text())
    place = told[section] if section else told
    place[key] = value
    if value is None:
        del place[key]
    (folder / SEGMENTER_FILE).write_text(json.dumps(told))
    before = torch.get_rng_state()
    with pytest.raises(WeightsError, match=r"segmenter.json: no description of a segmenter \(.*copy the folder again"):
        load_segmenter(folder)
    assert torch.equal(torch.get_rng_state(), before)

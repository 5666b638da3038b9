"""Feature vectors of an encoder whose tokens can be told from its input."""

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dmt_ds.data.batch import Batch
from dmt_ds.downstream import features
from dmt_ds.downstream.features import extract_features, pixel_features
from dmt_ds.errors import DataError, WeightsError

CPU = torch.device("cpu")


class ChannelMeans(nn.Module):
    """Tokens [B, 1+4, 3]: the class token is the image's mean colour, each patch token that of a quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.modes_seen: list[tuple[bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self.modes_seen.append((self.training, torch.is_grad_enabled()))
        pixels = images.float()
        class_token = pixels.mean(dim=(2, 3))[:, None]  # [B, 1, 3]
        quarters = nn.functional.adaptive_max_pool2d(pixels, 2).flatten(2).transpose(1, 2)  # [B, 4, 3]
        return torch.cat([class_token, quarters], dim=1) * self.scale


def make_batches(num_images: int = 7, batch_size: int = 3) -> Iterator[Batch]:
    images = torch.randint(256, (num_images, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for rows in torch.arange(num_images).split(batch_size):
        yield Batch((images[rows],), seeds=rows, indices=rows, labels=rows % 3)


def test_every_image_gives_one_row_in_order_with_its_label() -> None:
    features = extract_features(ChannelMeans(), make_batches(), CPU)
    found, labels = features.of("class"), features.labels
    images = torch.cat([batch.images for batch in make_batches()]).float()
    torch.testing.assert_close(found, images.mean(dim=(2, 3)))
    assert found.dtype == torch.float32 and not found.requires_grad
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_patch_mean_leaves_the_class_token_out() -> None:
    found = extract_features(ChannelMeans(), make_batches(), CPU).of("patch_mean")
    images = torch.cat([batch.images for batch in make_batches()]).float()
    quarters = [images[:, :, r : r + 4, c : c + 4].amax(dim=(2, 3)) for r in (0, 4) for c in (0, 4)]
    torch.testing.assert_close(found, torch.stack(quarters).mean(dim=0))


def test_the_encoder_is_asked_in_evaluation_mode_and_left_as_it_was() -> None:
    for training in (True, False):
        encoder = ChannelMeans().train(training)
        extract_features(encoder, make_batches(), CPU)
        assert set(encoder.modes_seen) == {(False, False)}
        assert encoder.training is training


def test_features_are_the_same_at_any_batch_size() -> None:
    one = extract_features(ChannelMeans(), make_batches(batch_size=1), CPU)
    all_at_once = extract_features(ChannelMeans(), make_batches(batch_size=7), CPU)
    torch.testing.assert_close(one, all_at_once)


def test_a_half_precision_encoder_gives_float32_features() -> None:
    class_token, patch_mean, _ = extract_features(ChannelMeans().bfloat16(), make_batches(), CPU)
    assert class_token.dtype == patch_mean.dtype == torch.float32


def test_an_encoder_that_gives_nan_is_refused() -> None:
    encoder = ChannelMeans()
    nn.init.constant_(encoder.scale, float("nan"))
    with pytest.raises(WeightsError, match="NaN or infinity for 7 of 7 images"):
        extract_features(encoder, make_batches(), CPU)


def test_nan_in_the_patch_tokens_alone_is_refused_too() -> None:
    class BrokenPatches(ChannelMeans):
        def forward(self, images: Tensor) -> Tensor:
            tokens = super().forward(images)
            tokens[0, 2] = float("nan")  # the first image of each batch
            return tokens

    with pytest.raises(WeightsError, match="NaN or infinity for 3 of 7 images"):
        extract_features(BrokenPatches(), make_batches(), CPU)


def test_no_images_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="there is no image to compute features of"):
        extract_features(ChannelMeans(), iter(()), CPU)


def test_pixels_are_features_between_zero_and_one() -> None:
    features = pixel_features(make_batches())
    images = torch.cat([batch.images for batch in make_batches()])
    assert torch.equal(features.of("class"), images.reshape(7, -1) / 255)
    assert torch.equal(features.of("patch_mean"), features.of("class"))
    assert len(features.labels) == 7


def test_progress_is_logged_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(features, "_SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        pixel_features(make_batches())
    assert [message.split(",")[0] for message in caplog.messages] == [f"features of {n} images" for n in (3, 6, 7)]

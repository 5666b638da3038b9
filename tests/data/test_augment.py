"""The device's augmentation against torchvision's, one image at a time."""

import pytest
import torch
import torchvision.transforms.v2.functional as tvf

from dmt_ds import sample_rng
from dmt_ds.config.methods import AugmentConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.data.augment import Augment, gaussian_blur, normalize, turn_hue
from tests.data.jittered import jittered_by_torchvision, random_images

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
ALL = AugmentConfig(
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_probability=0.5,
    solarize_probability=0.2,
    **PLAIN,
)


@pytest.mark.parametrize("hue", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_jitter_is_torchvisions_with_an_order_and_strengths_for_each_image(hue: float, probability: float) -> None:
    section = AugmentConfig(
        brightness=0.4, contrast=0.8, saturation=1.5, hue=hue, jitter_probability=probability, **PLAIN
    )
    images, seeds = random_images(64), torch.arange(64)
    pairs = zip(images, seeds, strict=True)
    expected = torch.stack([jittered_by_torchvision(image, section, seed) for image, seed in pairs])
    torch.testing.assert_close(Augment(section)(images, seeds), expected, atol=1e-4, rtol=0)


def test_jitter_is_that_of_8_bit_images_to_their_rounding() -> None:
    images, seeds = random_images(64), torch.arange(64)
    for name, adjust, index in [
        ("brightness", tvf.adjust_brightness, 1),
        ("contrast", tvf.adjust_contrast, 2),
        ("saturation", tvf.adjust_saturation, 3),
        ("hue", tvf.adjust_hue, 4),
    ]:
        strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.4}
        got = Augment(AugmentConfig(**strengths, **PLAIN))(images, seeds) * 255
        numbers = sample_rng.uniform(seeds, "jitter/0", 13)[:, index].tolist()
        for image, number, mine in zip(images, numbers, got, strict=True):
            factor = (2 * number - 1) * 0.4 if name == "hue" else 0.6 + 0.8 * number
            assert (mine - adjust(image, factor).float()).abs().max() <= 2, name


def test_each_order_of_the_four_adjustments_is_as_likely() -> None:
    numbers = sample_rng.uniform(torch.arange(24_000), "jitter/0", 13)
    codes = (numbers[:, 5:9].argsort(dim=1) * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 24 and (counts - 1000).abs().max() < 150


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.3, 0.5])
def test_hue_is_turned_as_by_torchvision(turn: float) -> None:
    images = torch.cat([random_images(8).float() / 255, torch.full((1, 3, 32, 32), 0.5)])
    torch.testing.assert_close(
        turn_hue(images, torch.full((9,), turn)), tvf.adjust_hue(images, turn), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize(("size", "kernel"), [(224, 23), (96, 11), (32, 5), (8, 3)])
def test_blur_is_torchvisions_with_a_sigma_for_each_image(size: int, kernel: int) -> None:
    images, sigmas = random_images(4, size).float() / 255, torch.tensor([0.1, 0.5, 1.0, 2.0])
    expected = torch.stack(
        [
            tvf.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
            for image, sigma in zip(images, sigmas.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(gaussian_blur(images, sigmas), expected, atol=1e-5, rtol=0)


def test_blur_stays_float32_under_autocast() -> None:
    images, sigmas = random_images(2).float() / 255, torch.ones(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gaussian_blur(images, sigmas), gaussian_blur(images, sigmas).float())
        inside = gaussian_blur(images, sigmas)
    torch.testing.assert_close(inside, gaussian_blur(images, sigmas), atol=1e-6, rtol=0)


def only(**settings: float) -> AugmentConfig:
    return AugmentConfig(**{"brightness": 0, "contrast": 0, "saturation": 0, **settings}, **PLAIN)


def test_grey_images_are_torchvisions() -> None:
    images = random_images(4)
    got = Augment(only(grayscale_probability=1.0))(images, torch.arange(4))
    torch.testing.assert_close(got, tvf.rgb_to_grayscale(images.float() / 255, 3), atol=1e-6, rtol=0)


def test_solarized_images_are_torchvisions() -> None:
    images = random_images(4)
    got = Augment(only(solarize_probability=1.0))(images, torch.arange(4))
    torch.testing.assert_close(got, tvf.solarize(images, 128).float() / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["grayscale_probability", "blur_probability", "solarize_probability"])
def test_the_share_of_changed_images_is_the_probability(name: str) -> None:
    images = random_images(1, 8).expand(4000, -1, -1, -1)
    changed = (Augment(only(**{name: 0.3}))(images, torch.arange(4000)) - images / 255).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert abs(changed.float().mean() - 0.3) < 0.03


def test_no_augmentation_only_normalises() -> None:
    images = random_images(4)
    got = Augment(AugmentConfig(brightness=0, contrast=0, saturation=0))(images, torch.arange(4))
    assert torch.equal(got, normalize(images, IMAGENET_MEAN, IMAGENET_STD))


def test_a_batch_cut_in_two_gives_the_same_pixels() -> None:
    images, seeds = random_images(10), torch.arange(10)
    whole, augment = Augment(ALL)(images, seeds), Augment(ALL)
    parts = torch.cat([augment(images[:3], seeds[:3]), augment(images[3:], seeds[3:])])
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


def test_the_compiler_takes_it_as_one_graph() -> None:
    images, seeds, augment = (
        random_images(6).contiguous(memory_format=torch.channels_last),
        torch.arange(6),
        Augment(ALL),
    )
    compiled = torch.compile(augment.__call__, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, seeds), augment(images, seeds), atol=1e-6, rtol=0)


@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_pixels_come_out_in_planes_however_they_lie(format_: torch.memory_format) -> None:
    images, seeds = random_images(6), torch.arange(6)
    got = Augment(ALL)(images.contiguous(memory_format=format_), seeds)
    assert got.is_contiguous() and torch.equal(got, Augment(ALL)(images, seeds))


def test_views_of_an_image_are_augmented_independently() -> None:
    images, seeds = random_images(8), torch.arange(8)
    assert not torch.allclose(Augment(ALL)(images, seeds, view=0), Augment(ALL)(images, seeds, view=1), atol=0.05)


def test_normalising_bytes_and_fractions_is_torchvisions() -> None:
    images = random_images(4)
    expected = tvf.normalize(images.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(normalize(images, IMAGENET_MEAN, IMAGENET_STD), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize(images / 255, IMAGENET_MEAN, IMAGENET_STD), expected, atol=1e-5, rtol=0)

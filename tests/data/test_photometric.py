"""Photometric distortion: each image by its own seed, HSV's saturation as colorsys has it."""

import colorsys

import torch

from dmt_ds.data.photometric import distort, saturate

SEEDS = torch.arange(400)
PIXELS = torch.rand(400, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_saturation_is_hsvs() -> None:
    factors = torch.tensor([0.0, 0.5, 1.0, 1.5, 3.0])
    pixels = PIXELS[:5]
    found = saturate(pixels, factors)
    for image in range(5):
        for row in range(2):
            for column in range(2):
                hue, saturation, value = colorsys.rgb_to_hsv(*pixels[image, :, row, column].tolist())
                expected = colorsys.hsv_to_rgb(hue, min(1.0, saturation * float(factors[image])), value)
                torch.testing.assert_close(found[image, :, row, column], torch.tensor(expected), atol=1e-5, rtol=0)


def test_an_image_is_distorted_alone_as_among_others() -> None:
    whole = distort(PIXELS, SEEDS)
    assert torch.equal(whole[7:9], distort(PIXELS[7:9], SEEDS[7:9]))
    assert not torch.equal(whole[:200], distort(PIXELS[:200], SEEDS[200:]))


def test_one_image_in_sixteen_stays_as_it_is() -> None:
    same = (distort(PIXELS, SEEDS) - PIXELS).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 0.03 < same.float().mean() < 0.10  # 1/16, four standard deviations either way


def test_strengths_keep_their_bounds_on_grey() -> None:
    # Grey knows no hue and no saturation: what is left is at most 32/255 of brightness and half of the contrast.
    grey = torch.full((400, 3, 1, 1), 0.5)
    found = distort(grey, SEEDS)
    spread = found.amax(dim=1) - found.amin(dim=1)
    assert spread.max() < 1e-5
    assert found.min() >= (0.5 - 32 / 255) * 0.5 - 1e-5
    assert found.max() <= (0.5 + 32 / 255) * 1.5 + 1e-5
    assert found.max() - found.min() > 0.4


def test_hue_turns_by_up_to_a_tenth_of_the_circle() -> None:
    # Brightness and contrast leave red's hue alone where they meet no bound, saturation does always.
    red = torch.tensor([0.6, 0.2, 0.2])[:, None, None].expand(400, 3, 1, 1)
    hues = [colorsys.rgb_to_hsv(*pixels.flatten().tolist())[0] for pixels in distort(red, SEEDS)]
    turns = [(hue + 0.5) % 1 - 0.5 for hue in hues]
    assert 0.095 < max(turns) <= 0.1001
    assert -0.1001 <= min(turns) < -0.095
    assert 0.4 < sum(abs(turn) < 1e-4 for turn in turns) / len(turns) < 0.6

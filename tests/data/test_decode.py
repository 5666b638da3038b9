"""Whatever a file is, it becomes upright 8-bit RGB or one line that names it."""

import io
import zlib

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import decode_jpeg

from dmt_ds.data import decode
from dmt_ds.data.decode import decode_image
from dmt_ds.errors import DataError
from tests.image_files import encode

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


def by_pillow(data: bytes) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)


HELD_BY = {
    "JPEG": ["RGB", "L", "1", "CMYK"],
    "PNG": ["RGB", "L", "P", "1", "RGBA", "LA"],
    "WEBP": ["RGB", "L", "P", "RGBA"],
    "BMP": ["RGB", "L", "P", "1", "RGBA"],
    "TIFF": ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK"],
    "GIF": ["RGB", "L", "P", "1", "RGBA", "LA"],
    "PPM": ["RGB", "L", "1", "RGBA"],
}


@pytest.mark.parametrize("scale", [1, 257])
def test_a_tiff_of_32_bits_keeps_8_and_16_bit_values(scale: int) -> None:
    image = decode_image(encode(Image.fromarray(PIXELS[..., 0].astype(np.int32) * scale), "TIFF"), "x")
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize("scale", [1, 255])
def test_floating_point_pixels_are_refused(scale: int) -> None:
    data = encode(Image.fromarray(PIXELS[..., 0].astype(np.float32) / scale), "TIFF")
    with pytest.raises(DataError, match=r"^x: has floating-point pixels, .* save it with 8 or 16 bits$"):
        decode_image(data, "x")


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in HELD_BY.items() for mode in modes])
def test_every_format_and_mode_is_as_pillow_says(kind: str, mode: str) -> None:
    data = encode(RGB.convert(mode), kind)
    image = decode_image(data, "x")
    assert image.shape == (3, 20, 30) and image.dtype == torch.uint8
    assert (image.int() - by_pillow(data).int()).abs().max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_their_8_upper_ones(kind: str) -> None:
    values = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    image = decode_image(encode(Image.fromarray(values), kind), "x")
    assert torch.equal(image, torch.from_numpy(np.rint(values / 257).astype(np.uint8)).expand(3, 20, 30))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_its_exif_says(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(RGB, kind, exif=exif)
    assert torch.equal(decode_image(data, "x"), by_pillow(data))
    assert decode_image(data, "x").shape == ((3, 20, 30) if orientation < 5 else (3, 30, 20))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_it_is_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "green")]
    image = decode_image(encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True), "x")
    assert torch.equal(image, torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 10, 20))


@pytest.mark.parametrize("has_fast_path", [True, False])
def test_a_jpeg_is_the_same_bit_for_bit_by_both_decoders(has_fast_path: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_fast_path:
        monkeypatch.delattr(torchvision.io, "decode_jpeg")  # as in a version without it
    data = encode(RGB.resize((200, 150)), "JPEG", quality=92)
    assert torch.equal(decode_image(data, "x"), by_pillow(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_file_is_named_in_one_line(kind: str) -> None:
    data = encode(RGB.resize((200, 200)), kind)
    with pytest.raises(DataError, match=r"^cat\.jpg: not a readable image \(.+\)") as caught:
        decode_image(data[: len(data) // 2], "cat.jpg")
    assert "\n" not in str(caught.value)


def test_an_empty_file_says_so() -> None:
    with pytest.raises(DataError, match=r"cat\.jpg: the image file is empty"):
        decode_image(b"", "cat.jpg")


def test_text_is_no_image() -> None:
    with pytest.raises(DataError, match=r"cat\.jpg: not a readable image"):
        decode_image(b"<html>404 not found</html>", "cat.jpg")


def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encode(Image.new("1", (20_000, 10_000)), "PNG")
    monkeypatch.setattr(decode, "_decode_pillow", None)  # would be called if pixels were decoded
    with pytest.raises(DataError, match=r"bomb\.png: .*limit"):
        decode_image(bomb, "bomb.png")


def test_a_jpeg_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encode(Image.new("L", (12_000, 9_000)), "JPEG")
    monkeypatch.delattr(torchvision.io, "decode_jpeg")  # as in a version without it
    monkeypatch.setattr(decode, "_decode_pillow", None)
    with pytest.raises(DataError, match=r"bomb\.jpg: 12000 x 9000 pixels are over the limit"):
        decode_image(bomb, "bomb.jpg")


JPEG = encode(RGB, "JPEG", progressive=True, exif=b"Exif\0\0" + bytes(50), comment=b"a comment")


def damaged(data: st.DataObject, whole: bytes, last: int) -> bytearray:
    """With some bytes between the second and `last` changed, and maybe a few put in between."""
    found = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 6))):
        found[data.draw(st.integers(2, last))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        place = data.draw(st.integers(2, last))
        found[place:place] = data.draw(st.binary(max_size=12))
    return found


@given(st.data())
@settings(max_examples=300)
def test_whatever_a_jpeg_header_says_its_size_is_what_the_decoder_finds_or_pillow_is_asked(data: st.DataObject) -> None:
    """Were it smaller than what the decoder finds, a bomb would pass."""
    picture = damaged(data, JPEG, 200)
    size = decode._jpeg_size(bytes(picture))
    try:
        decoded = decode_jpeg(torch.frombuffer(picture, dtype=torch.uint8)).shape[-2:]
    except RuntimeError:
        return
    assert size is None or size == (decoded[1], decoded[0])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "BMP"])
@given(st.data())
@settings(max_examples=60)
def test_whatever_a_header_says_it_is_an_image_below_the_limit_or_one_line(kind: str, data: st.DataObject) -> None:
    """A header may lie, and be sound as PNG's checksum sees it: no more pixels are decoded than are allowed."""
    picture = damaged(data, encode(RGB, kind), 60)
    if kind == "PNG" and data.draw(st.booleans()):
        picture[29:33] = zlib.crc32(picture[12:29]).to_bytes(4, "big")
    told = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "MAX_PIXELS", 2000)
        try:
            image = decode_image(bytes(picture), "cat")
        except DataError as error:
            told = str(error)
    if told:
        assert told.startswith("cat: ") and "\n" not in told
        return
    assert image.dtype == torch.uint8 and image.shape[0] == 3 and image.shape[1:].numel() <= 2000


def test_the_size_of_a_jpeg_is_read_without_pillow() -> None:
    for options in ({}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(99)}, {"subsampling": 0}):
        assert decode._jpeg_size(encode(RGB, "JPEG", **options)) == (30, 20)
    assert decode._jpeg_size(encode(RGB, "PNG")) is None


def test_a_large_photograph_below_the_limit_is_no_bomb() -> None:
    assert decode_image(encode(Image.new("L", (6000, 4000)), "JPEG"), "x").shape == (3, 4000, 6000)


def test_random_damage_gives_an_image_or_one_line() -> None:
    rng = np.random.default_rng(0)
    whole = [encode(RGB, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]
    messages = []
    for turn in range(300):
        data = bytearray(whole[turn % len(whole)])
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(256)
        try:
            assert decode_image(bytes(data), "x").dtype == torch.uint8
        except DataError as error:
            messages.append(str(error))
    assert messages and not any("\n" in message for message in messages)

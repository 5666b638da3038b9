"""Bytes of an image file to a tensor; knows no data set.

torchvision decodes JPEG, a quarter faster than Pillow, which decodes the rest. Not PNG: torchvision 0.29 ends the
process (SIGSEGV) on a PNG with a damaged byte. It means to drop its decoders one day; then Pillow decodes JPEG too.
"""

import io
import re
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dmt_ds.errors import DataError
from dmt_ds.wording import first_line

REMEDY = "; fetch it again"
"""What begins the advice in a message on a broken file, for who has no use for it."""
_JPEG = b"\xff\xd8"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of the segment that says the size
_ORIENTATION, _ON_ITS_SIDE = 0x0112, frozenset(range(5, 9))  # EXIF's tag, and its values for a quarter turn

MAX_PIXELS = 256 * 2**20 // 3
"""Pictures of more pixels (256 MiB of RGB, Pillow's own limit) are refused: a few kB of file can fill the memory."""


def decode_image(data: bytes, name: str) -> Tensor:
    """Decode to [3, H, W] uint8 RGB, upright.

    Grey, palette, CMYK and 16-bit pictures become 8-bit RGB; transparency is dropped; of an animation it is the first
    frame. 32-bit integers in a TIFF are taken for 8 bits where they fit these, else for 16.

    Args:
        data: the whole file.
        name: what to call the image in an error.

    Raises:
        DataError: empty, truncated, corrupt, of no known format, in floating point, or larger than `MAX_PIXELS`.
    """
    if not data:
        raise DataError(f"{name}: the image file is empty (0 bytes){REMEDY} or remove it")
    try:
        size = _jpeg_size(data) or _size(data)
        if size[0] * size[1] > MAX_PIXELS:
            raise DataError(f"{name}: {size[0]} x {size[1]} pixels are over the limit of {MAX_PIXELS}; make it smaller")
        if data[:2] == _JPEG:
            try:
                return _decode_jpeg(data)
            except (RuntimeError, ImportError):
                pass  # Pillow knows more variants, and says more plainly what is wrong
        return _decode_pillow(data, name)
    except DataError:
        raise
    except Exception as error:  # a broken file makes decoders raise whatever they like
        raise DataError(
            f"{name}: not a readable image ({_reason(error)}){REMEDY}, remove it, or set data.bad_images=skip"
        ) from None


def is_turned(data: bytes) -> bool:
    """Whether a readable image's EXIF data exchange its width and height."""
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a JPEG that is written as usual, else None: Pillow takes ten times as long."""
    place = 2 if data[:2] == _JPEG else len(data)
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            return int.from_bytes(data[place + 7 : place + 9], "big"), int.from_bytes(
                data[place + 5 : place + 7], "big"
            )
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA or marker == 0xFF:  # has no length, or is out of place
            break
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _size(data: bytes) -> tuple[int, int]:
    """Width and height by the header, which is all that is read: of a bomb not a pixel is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
            return width, height


def _decode_jpeg(data: bytes) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bytes are read-only, and only read; decoders are deprecated
        encoded = torch.frombuffer(data, dtype=torch.uint8)
        image: Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    return image


def _decode_pillow(data: bytes, name: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            if image.mode == "F":  # Pillow's own conversion makes 0..1 black
                raise DataError(
                    f"{name}: has floating-point pixels, and does not say what is white: save it with 8 or 16 bits"
                )
            is_wide = image.mode == "I" and image.format == "TIFF"  # 16 bits of other formats have mode I too
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # Pillow's own conversion would clip 16 bits to 8
                grey = np.asarray(image, dtype=np.int64).clip(0, 65535)
                grey = grey if is_wide and grey.max() <= 255 else (grey + 128) // 257
                pixels = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
            else:
                pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _reason(error: Exception) -> str:
    """Without Pillow's name for what it was given."""
    return re.sub(r" ?<_io\.BytesIO object at 0x[0-9a-f]+>", "", first_line(error))[:120]

"""Pictures as the bytes of a file."""

import io

from PIL import Image


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """In a format of Pillow's, with its options."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()

"""The images in a card: images with the checkpoint's own crops drawn on them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from modeling_setcrop import Cropper
from modeling_setcrop.image_reading import decode_image
from modeling_setcrop.images.atomic import atomic_writer
from modeling_setcrop.images.drawing import draw_crops

# Images by Budgie Backgrounds, CC0; small copies of those in examples/photos.
PHOTOS = tuple(sorted(Path(__file__).with_name("photos").glob("*.jpg")))
_CROPS = 3


def write_examples(folder: Path, target: Path) -> list[Path]:
    """Draw the best crops that the checkpoint in `folder` finds in `PHOTOS`, as JPEG files in `target`."""
    cropper = Cropper(folder, runtime="torch", device="cpu")
    written = []
    for photo in PHOTOS:
        with Image.open(photo) as opened:
            loaded = decode_image(opened, max(opened.size))
        drawn = draw_crops(loaded, cropper(photo, top_k=_CROPS))
        written.append(target / photo.name)
        with atomic_writer(written[-1]) as file:
            drawn.save(file, format="JPEG", quality=88)
    return written

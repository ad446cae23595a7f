"""A contact sheet: the best crop of each image in several aspect ratios, on one image.

python examples/contact_sheet.py examples/photos --out docs/contact-sheet.jpg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from modeling_setcrop.cli.options import UsageError, load_cropper
from modeling_setcrop.crop_options import CropOptions
from modeling_setcrop.image_reading import ImageFileError, decode_image
from modeling_setcrop.images.atomic import atomic_writer
from modeling_setcrop.images.drawing import DRAWING_SIDE, contact_sheet, image_and_crops
from modeling_setcrop.runs.scheduling import in_order, suggest_crops
from modeling_setcrop.runs.sources import list_sources


def parser_of_options() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, metavar="IMAGE|FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="JPEG file")
    parser.add_argument("--aspect-ratio", default="16:9,1:1,4:5,9:16", help="with commas")
    parser.add_argument("--height", type=int, default=220, help="of each image, in pixels")
    parser.add_argument("--model", help="checkpoint; by default the one that comes with SetCrop")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit status: 1 when an image failed, 2 when an option is wrong."""
    parser = parser_of_options()
    args = parser.parse_args(arguments)
    options = {"aspect_ratio": args.aspect_ratio.split(","), "top_k": 1}
    if args.height < 1:
        parser.error(f"--height {args.height}: give at least one pixel")
    errors: list[ImageFileError] = []
    photos = list_sources(args.photos, errors.append)
    try:
        CropOptions(**options)
        if any(args.out.exists() and args.out.samefile(photo.path) for photo in photos):
            raise UsageError(f"--out {args.out}: the sheet would overwrite one of the images")
        cropper = load_cropper(args.model, None)
    except (UsageError, ValueError) as error:
        parser.error(str(error))
    rows = []
    for suggestion in in_order(suggest_crops(cropper, photos, options), photos):
        if suggestion.error is not None:
            errors.append(suggestion.error)
            continue
        with Image.open(suggestion.source.path) as image:
            rows.append(image_and_crops(decode_image(image, DRAWING_SIDE), suggestion.result["crops"]))
    for error in errors:
        print(error, file=sys.stderr)
    if rows:
        with atomic_writer(args.out) as file:
            contact_sheet(rows, args.height).save(file, format="JPEG", quality=85)
        print(f"{len(rows)} image{'s'[: len(rows) != 1]} with crops: {args.out}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

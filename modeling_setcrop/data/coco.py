"""COCO files with crops: written by `setcrop data convert --to coco`, and read, from wherever they are.

    ROOT/annotations/SPLIT.json, images in ROOT/SPLIT/       written, and read
    ROOT/annotations/instances_train2017.json, ...           read: the split is in the name (train, val, test)
    ROOT/SPLIT/_annotations.coco.json                        read: images beside it

An annotation is a crop: `bbox` x, y, width, height in pixels of the image as displayed, `category_id` 1 for the crops
that a person would keep and 2 for others that were rated, and as extra fields `rating` (1..5 as written)
and `validity` (1 or 0, as the category).
"""

from __future__ import annotations

import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image

from ..coco_annotations import CATEGORIES, GOOD, REJECTED, coco_box, coco_file_name, coco_image_id, crops_of_coco
from ..images.atomic import atomic_folder
from .cache import build
from .reading import boxes_inside, image_size, reading_entry
from .schema import RATING_SCALE, DataError, Problems, Row

_ANNOTATIONS = "annotations"
_BESIDE = "_annotations.coco.json"
_SPLIT_WORDS = {"train": "train", "val": "validation", "test": "test"}


def load_coco(
    path: str | os.PathLike, *, problems: Problems | None = None, rating_scale: Sequence[float] = RATING_SCALE
) -> DatasetDict:
    """Read a folder with COCO files (see above).

    Args:
        path: The folder.
        problems: Receives the bad entries, which are left out; None logs a summary.
        rating_scale: Lowest and highest rating that people could give.

    Returns:
        The splits that there are files for, rows as in `schema.FEATURES`.

    Raises:
        DataError: There is no COCO file, or, with `problems.strict`, at the first bad entry.
    """
    root = Path(path).resolve()
    files = (
        sorted(root.glob(f"{_ANNOTATIONS}/*.json")) + sorted(root.glob(f"*/{_BESIDE}")) + sorted(root.glob(_BESIDE))
    )
    if not files:
        raise DataError(f"{root}: layout 'coco' needs '{_ANNOTATIONS}/SPLIT.json' or 'SPLIT/{_BESIDE}'")

    def rows(found: Problems) -> Iterator[Row]:
        for file in files:
            yield from _rows(root, file, found)

    folders = [root, root / _ANNOTATIONS, *(folder for folder in root.iterdir() if folder.is_dir()), *files]
    return build("coco", root, folders, rows, problems, rating_scale=rating_scale)


def _rows(root: Path, file: Path, problems: Problems) -> Iterator[Row]:
    name = (file.parent.name if file.name == _BESIDE else file.stem).lower()
    split = next((split for word, split in _SPLIT_WORDS.items() if word in name), "train")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        images, annotations = content["images"], content["annotations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.add("undecodable annotation", file, f"is no COCO file with images and annotations ({error!r})")
        return
    if not isinstance(images, list) or not isinstance(annotations, list):
        problems.add("undecodable annotation", file, "images and annotations are not both lists")
        return
    of_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for number, annotation in enumerate(annotations, start=1):
        with reading_entry(problems, file, f"annotation {number}"):
            of_image[annotation.get("image_id")].append(annotation)
    for number, image in enumerate(images, start=1):
        row = None
        with reading_entry(problems, file, f"image {number}"):
            row = _row(root, file, split, image, of_image.get(image.get("id"), []), problems)
        if row is not None:
            yield row


def _row(
    root: Path, file: Path, split: str, image: dict[str, Any], annotations: list[dict[str, Any]], problems: Problems
) -> Row | None:
    name = str(image.get("file_name"))
    if Path(name).is_absolute() or ".." in Path(name).parts:
        problems.add("outside the folder", file, f"file_name {name!r} leaves the folder")
        return None
    path = next((place / name for place in _places(root, file) if (place / name).is_file()), None)
    if path is None:
        problems.add("annotation without image", file, f"no such image: {name}")
        return None
    size = image_size(path, problems)
    if size is None:
        return None
    if size != (image.get("width", size[0]), image.get("height", size[1])):
        stated = f"{image.get('width')} x {image.get('height')}"
        problems.add("size differs", file, f"{name} is {stated} in the file but is displayed at {size[0]} x {size[1]}")
        return None
    try:
        crops = crops_of_coco(annotations)
    except ValueError as error:
        problems.add("wrong number of fields", file, f"{name}: {error}")
        return None
    boxes = np.array(crops["boxes"], dtype=np.float64).reshape(-1, 4)
    boxes, keep = boxes_inside(boxes, size, file, [None] * len(boxes), problems)
    if not keep.any():
        problems.add("no usable crop", file, f"{name} has no crop inside the image")
        return None
    scores = None if crops["scores"] is None else np.array(crops["scores"], dtype=np.float64)[keep]
    good: np.ndarray | None = np.array(crops["good"], dtype=bool)[keep]
    said = any("validity" in annotation or annotation.get("category_id") == REJECTED for annotation in annotations)
    if scores is not None and not said:
        good = None
    number = image.get("id")
    number = number if type(number) is int and abs(number) < 2**63 else None
    return Row(str(path), os.path.splitext(name)[0], *size, boxes[keep], scores, good, split, coco_id=number)


def _places(root: Path, file: Path) -> list[Path]:
    """Folders in which a COCO file's images may lie."""
    stem = file.stem.removeprefix("instances_")
    return [file.parent, root / stem, root / "images" / stem, root / "images", root]


def save_coco(splits: DatasetDict, path: str | os.PathLike) -> None:
    """Write COCO files and images to a new folder, whole or not at all.

    Images keep their files' bytes; one whose EXIF orientation turns it is written upright, since COCO's boxes and most
    readers of COCO files know no orientation.

    Raises:
        DataError: The folder exists already and is not empty, or two images of a split have one name.
        OSError: It cannot be written, or an image cannot be read.
    """
    target = Path(path).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: exists already")
    with atomic_folder(target) as work:
        (work / _ANNOTATIONS).mkdir()
        for split, dataset in splits.items():
            (work / split).mkdir()
            content = _write_split(dataset, work / split)
            (work / _ANNOTATIONS / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _write_split(dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Write a split's images into `folder` and return its COCO file's content."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    used: set[int] = set()
    for row in dataset.cast_column("image", ImageFeature(decode=False)):
        content, suffix = _upright_file(row["image"])
        name = coco_file_name(row["image_id"], suffix)
        number = coco_image_id(name)
        if number in used:
            raise DataError(f"two images are named {name}")
        used.add(number)
        (folder / name).write_bytes(content)
        images.append({"id": number, "file_name": name, "width": row["width"], "height": row["height"]})
        ratings = row["scores"] if row["scores"] is not None else [None] * len(row["boxes"])
        for box, rating, good in zip(row["boxes"], ratings, row["good"], strict=True):
            bbox = coco_box(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": GOOD if good else REJECTED,
                    "bbox": bbox,
                    "area": round(bbox[2] * bbox[3], 2),
                    "iscrowd": 0,
                    "validity": int(good),
                    **({} if rating is None else {"rating": round(rating, 6)}),
                }
            )
    return {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}


def _upright_file(image: dict[str, Any]) -> tuple[bytes, str]:
    """Return a row's image as a file's bytes and ending, upright."""
    content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        suffix = os.path.splitext(image["path"] or "")[1] or f".{(opened.format or 'png').lower()}"
        if opened.getexif().get(0x0112, 1) == 1:
            return content, suffix
        from PIL import ImageOps

        turned, file = ImageOps.exif_transpose(opened), io.BytesIO()
        options = {"quality": 95} if opened.format == "JPEG" else {}
        turned.save(file, format=opened.format, **options)
        return file.getvalue(), suffix

"""What crops are called and how large they are written."""

from __future__ import annotations

import os
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ..crop_options import turned_sides
from ..image_reading import ImageFileError
from ..images.formats import output_suffix
from ..images.metadata import Strip
from .crops import Crop, CroppedImage
from .scheduling import Suggestion
from .sources import Source

_TEMPLATE_FIELDS = frozenset({"stem", "rank", "ratio", "width", "height", "score"})
# File systems allow a file's name so many bytes.
_NAME_BYTES = 255


def default_name(top_k: int, aspect_ratios: Sequence[str]) -> str:
    """Return a template under which crops have different names, that stay when another aspect ratio is asked for."""
    return "{stem}" + ("_{ratio}" if aspect_ratios else "") + ("_{rank}" if top_k > 1 else "")


@dataclass(frozen=True)
class CropPlan:
    """How crops are named and written.

    Attributes:
        out: The output folder, which mirrors the folders that were searched.
        name: Template of file names, without suffix: {stem}, {rank}, {ratio}, {width}, {height}, {score}.
        format: File format, or None for each image's own.
        quality: 1..100, for JPEG, WebP and AVIF.
        width, height: Pixels to which crops are brought down; smaller crops stay as they are.
        strip: What of the image's metadata its crops lose.
        ratio: The aspect ratio of crops that do not say theirs, as it was asked for; None for none.
        enlarge: Bring smaller crops up to that size too.
        follow_orientation: Width and height are turned with the image.

    Raises:
        ValueError: The template names an unknown field, or the format is unknown.
    """

    out: Path
    name: str
    format: str | None = None
    quality: int = 92
    width: int | None = None
    height: int | None = None
    strip: Strip = "nothing"
    ratio: str | None = None
    enlarge: bool = False
    follow_orientation: bool = False

    def __post_init__(self) -> None:
        try:
            used = self._fields()
            self.name.format(stem="", rank=1, ratio="", width=1, height=1, score=1)
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"name template {self.name!r}: {error}") from None
        if not used <= _TEMPLATE_FIELDS:
            raise ValueError(f"name template {self.name!r}: use only {', '.join(sorted(_TEMPLATE_FIELDS))}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality lies in 1..100, not {self.quality}")
        if self.format is not None:
            output_suffix("", self.format)

    def _fields(self) -> set[str]:
        return {field for _, field, _, _ in string.Formatter().parse(self.name) if field is not None}

    def signature(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        """Return all that decides what the crops look like: a change of it makes an earlier run's out of date."""
        how = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("out", "ratio")}
        return options | how | {"model": model}

    def check_names(
        self, sources: Iterable[Source], aspect_ratios: Sequence[str], top_k: int, best_of: bool = False
    ) -> None:
        """Find crops that would have one name, as far as that does not hang on what the model answers.

        Args:
            sources: All images of a run.
            aspect_ratios: Those asked for.
            top_k: Most crops of each ratio, or with `best_of` of all.
            best_of: As the option.

        Raises:
            ValueError: Two crops would; the message names their images and the file.
        """
        used = self._fields()
        if used & {"score", "width", "height"}:
            return
        ratios = dict.fromkeys(aspect_ratios or [""]) if "ratio" in used else list(aspect_ratios) or [""]
        taken: dict[str, Source] = {}
        for source in sources:
            suffix = output_suffix("", self.format) if self.format else source.path.suffix
            for ratio in ratios:
                for rank in range(1, top_k + 1):
                    file = self._file(source, ratio, rank, suffix)
                    other = taken.setdefault(file, source)
                    if other is not source:
                        both = f"{other.path} and of {source.path}"
                        raise ValueError(f"--name {self.name!r}: crops of {both} would both be named {file}")
            if len(ratios) > 1 and "ratio" not in used and not (best_of and top_k == 1):
                raise ValueError(f"--name {self.name!r}: use {{ratio}}, as several aspect ratios are asked for")

    def _file(self, source: Source, ratio: str, rank: int, suffix: str, **others: int) -> str:
        values = {"width": 0, "height": 0, "score": 0} | others
        name = self.name.format(stem=source.stem, rank=rank, ratio=_in_a_name(ratio), **values)
        return (source.folder / (name + suffix)).as_posix()

    def crops(self, suggestion: Suggestion) -> CroppedImage:
        """Return an image's crops with the files they go to.

        Raises:
            ImageFileError: Two crops would have the same name, or one cannot have the name it would.
        """
        source, result, image_size = suggestion.source, suggestion.result, suggestion.size
        suffix = output_suffix("", self.format) if self.format else suggestion.suffix
        ranks: Counter[str] = Counter()
        crops = []
        for found in result["crops"]:
            box = tuple(found["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax"))
            ratio = str(found.get("aspect_ratio", self.ratio or ""))
            ranks[ratio] += 1
            size = self.final_size(box, ratio)
            score = round(100 * found["score"])
            file = self._file(source, ratio, ranks[ratio], suffix, width=size[0], height=size[1], score=score)
            gave_way = tuple(found.get("gave_way", ()))
            crops.append(Crop(box, round(found["score"], 5), ranks[ratio], ratio or None, gave_way, file, size))
        self._check_files(source, [crop.file for crop in crops])
        notes = [suggestion.note, None if crops else "no crop is above the threshold"]
        return CroppedImage(
            size=image_size[::-1],
            keep_original=round(result["keep_original"], 5),
            improves=round(result["improves"], 5),
            focus=(round(result["focus_point"]["x"], 5), round(result["focus_point"]["y"], 5)),
            crops=tuple(crops),
            note="; ".join(filter(None, notes)) or None,
        )

    def _check_files(self, source: Source, files: list[str]) -> None:
        for file, count in Counter(files).items():
            if count > 1:
                raise ImageFileError(
                    source.path, f"{count} crops would be named {file}: use {{rank}} in the template of names"
                )
            longest = max(len(os.fsencode(part)) for part in PurePosixPath(file).parts)
            if longest > _NAME_BYTES:
                raise ImageFileError(
                    source.path,
                    f"its crop's name would have {longest} bytes, over {_NAME_BYTES}: use a shorter --name",
                )
            target = Path(os.path.normpath(self.out / file))
            if Path(os.path.normpath(self.out)) not in target.parents:
                raise ImageFileError(source.path, f"a crop would be written outside {self.out}: {file}")
            if os.path.realpath(target) == os.path.realpath(source.path):
                raise ImageFileError(source.path, "its crop would overwrite the image itself")

    def final_size(self, box: tuple[int, int, int, int], ratio: str = "") -> tuple[int, int]:
        """Return width and height in pixels at which a crop is written.

        Args:
            box: x1, y1, x2, y2 of the crop.
            ratio: The aspect ratio that was asked for, which `follow_orientation` may have turned; empty for none.
        """
        width, height = box[2] - box[0], box[3] - box[1]
        across, down = self.width, self.height
        if self.follow_orientation:
            across, down = turned_sides(across, down, ratio or None, box)
        if across is not None and down is not None:
            fits = width >= across and height >= down
            return (across, down) if fits or self.enlarge else (width, height)
        if across is not None and (width > across or self.enlarge):
            return across, max(1, round(height * across / width))
        if down is not None and (height > down or self.enlarge):
            return max(1, round(width * down / height)), down
        return width, height


def _in_a_name(ratio: str) -> str:
    return ratio.replace(":", "x").replace("/", "x")

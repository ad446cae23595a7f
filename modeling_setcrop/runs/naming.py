"""What crops are called and how large they are written."""

from __future__ import annotations

import os
import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..image_reading import ImageFileError
from ..images.formats import output_suffix
from ..images.metadata import Strip
from .scheduling import Suggestion

_TEMPLATE_FIELDS = frozenset({"stem", "rank", "ratio", "width", "height", "score"})


@dataclass(frozen=True)
class CropPlan:
    """How crops are named and written.

    Attributes:
        out: The output folder, which mirrors the folders that were searched.
        name: Template of file names, without suffix: {stem}, {rank}, {ratio}, {width}, {height}, {score}.
        format: File format, or None for each photograph's own.
        quality: 1..100, for JPEG, WebP and AVIF.
        width, height: Pixels to which crops are brought down; smaller crops stay as they are.
        strip: What of the photograph's metadata its crops lose.

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

    def __post_init__(self) -> None:
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(self.name) if field is not None}
            self.name.format(stem="", rank=1, ratio="", width=1, height=1, score=1)
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"name template {self.name!r}: {error}") from None
        if not fields <= _TEMPLATE_FIELDS:
            raise ValueError(f"name template {self.name!r}: use only {', '.join(sorted(_TEMPLATE_FIELDS))}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality lies in 1..100, not {self.quality}")
        if self.format is not None:
            output_suffix("", self.format)

    def signature(self, model: str, options: dict[str, Any]) -> dict[str, Any]:
        """All that decides what the crops look like: a change of it makes an earlier run's crops out of date."""
        kept = {"name": self.name, "format": self.format, "quality": self.quality, "strip": self.strip}
        return options | {"model": model} | kept

    def rows(self, suggestion: Suggestion) -> list[dict[str, Any]]:
        """The manifest's rows for a photograph's crops, with the files they go to.

        Raises:
            ImageFileError: Two crops would have the same name.
        """
        photo, result, picture = suggestion.photo, suggestion.result, suggestion.picture
        suffix = output_suffix(photo.path, self.format)
        ranks: Counter[str] = Counter()
        rows = []
        for crop in result["crops"]:
            box, ratio = crop["box"], str(crop.get("aspect_ratio", ""))
            ranks[ratio] += 1
            width, height = self.final_size(box)
            name = self.name.format(
                stem=photo.stem,
                rank=ranks[ratio],
                ratio=ratio.replace(":", "x").replace("/", "x"),
                width=width,
                height=height,
                score=round(100 * crop["score"]),
            )
            rows.append(
                {
                    "source": photo.path.as_posix(),
                    "file": (photo.folder / (name + suffix)).as_posix(),
                    "rank": ranks[ratio],
                    "score": round(crop["score"], 5),
                    **box,
                    "width": width,
                    "height": height,
                    "aspect_ratio": ratio or None,
                    "gave_way": crop.get("gave_way", []),
                    "picture_width": picture.size[1],
                    "picture_height": picture.size[0],
                    "keep_original": round(result["keep_original"], 5),
                    "improves": round(result["improves"], 5),
                    "focus_x": round(result["focus_point"]["x"], 5),
                    "focus_y": round(result["focus_point"]["y"], 5),
                }
            )
        names = Counter(row["file"] for row in rows)
        for name, count in names.items():
            if count > 1:
                raise ImageFileError(photo.path, f"{count} crops would be named {name}: use {{rank}} in the template")
            target = Path(os.path.normpath(self.out / name))
            if Path(os.path.normpath(self.out)) not in target.parents:
                raise ImageFileError(photo.path, f"a crop would be written outside {self.out}: {name}")
            if target.exists() and target.samefile(photo.path):
                raise ImageFileError(photo.path, "its crop would overwrite the photograph itself")
        return rows

    def final_size(self, box: dict[str, int]) -> tuple[int, int]:
        """Width and height in pixels at which a crop is written."""
        width, height = box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]
        if self.width is not None and self.height is not None:
            return (self.width, self.height) if width >= self.width and height >= self.height else (width, height)
        if self.width is not None and width > self.width:
            return self.width, max(1, round(height * self.width / width))
        if self.height is not None and height > self.height:
            return max(1, round(width * self.height / height)), self.height
        return width, height

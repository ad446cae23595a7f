"""What a run makes of an image: its crops, from the model's answer to the written files and the manifest's rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..images.writing import CropFile


@dataclass(frozen=True)
class Crop:
    """One crop.

    Attributes:
        box: x1, y1, x2, y2 in whole pixels of the upright image.
        score: What the pipeline returns, 0..1.
        rank: 1 for the best of its aspect ratio.
        aspect_ratio: As it was asked for; None where none was.
        gave_way: Constraints that could not be met.
        file: Its file, relative to the output folder, with forward slashes.
        size: Width and height in pixels of the file's image.
    """

    box: tuple[int, int, int, int]
    score: float
    rank: int
    aspect_ratio: str | None
    gave_way: tuple[str, ...]
    file: str
    size: tuple[int, int]

    def to_write(self, out: Path) -> CropFile:
        """Return what is to be cut and written below an output folder."""
        # Suggesting, which needs this module to know earlier crops, need not know how they are written.
        from ..images.writing import CropFile

        x1, y1, x2, y2 = self.box
        return CropFile(self.box, out / self.file, None if self.size == (x2 - x1, y2 - y1) else self.size)


@dataclass(frozen=True)
class CroppedImage:
    """An image with its crops.

    Attributes:
        size: Width and height in pixels of the upright image.
        keep_original, improves: The pipeline's, 0..1 and -1..1.
        focus: x and y of the focus point, 0..1.
        crops: Best first, of every aspect ratio.
        note: What a person should know of it, or None.
    """

    size: tuple[int, int]
    keep_original: float
    improves: float
    focus: tuple[float, float]
    crops: tuple[Crop, ...]
    note: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CroppedImage:
        """Return what `to_dict` was called on, perhaps read from JSON.

        Raises:
            KeyError, TypeError: The values are not of that form.
        """
        crops = tuple(
            Crop(**crop | {name: tuple(crop[name]) for name in ("box", "gave_way", "size")})
            for crop in values["crops"]
        )
        return cls(**values | {"size": tuple(values["size"]), "focus": tuple(values["focus"]), "crops": crops})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, those of the crops too, for JSON."""
        return asdict(self)

    def rows(self, source: str) -> list[dict[str, Any]]:
        """Return the manifest's rows: one a crop, or one without a file where the image has none.

        Args:
            source: The image's path, as it was named.
        """
        about_image: dict[str, Any] = {
            "picture_width": self.size[0],
            "picture_height": self.size[1],
            "keep_original": self.keep_original,
            "improves": self.improves,
            "focus_x": self.focus[0],
            "focus_y": self.focus[1],
        }
        if self.note is not None:
            about_image["note"] = self.note
        rows = [
            {
                "source": source,
                "file": crop.file,
                "rank": crop.rank,
                "score": crop.score,
                **dict(zip(("xmin", "ymin", "xmax", "ymax"), crop.box, strict=True)),
                "width": crop.size[0],
                "height": crop.size[1],
                "aspect_ratio": crop.aspect_ratio,
                "gave_way": list(crop.gave_way),
                **about_image,
            }
            for crop in self.crops
        ]
        return rows or [{"source": source, "file": None, **about_image}]

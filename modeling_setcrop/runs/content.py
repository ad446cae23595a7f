"""What each image's crops must or had better keep and avoid: from a file, and the faces in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..crop_options import CropOptions
from ..image_reading import LoadedImage
from .sources import Source

FACE_WEIGHT = 0.5
"""How much a face weighs where it is a wish: lifting a crop by one rating, as large as the best crops differ by."""


@dataclass(frozen=True)
class Content:
    """Options for one image after another.

    Attributes:
        by_name: `keep` and `avoid` of an image, by its path as the file has it.
        faces: Whether faces are kept too.
        digest: Of the file, so that a run knows when it has changed.
    """

    by_name: dict[str, dict[str, Any]] = field(default_factory=dict)
    faces: bool = False
    digest: str = ""

    @classmethod
    def read(cls, file: Path | None, faces: bool = False) -> Content:
        """Read a JSON-lines file with a line per image.

        `{"photo": "trip/beach.jpg", "keep": [[x1, y1, x2, y2], {"box": [...], "weight": 0.6}], "avoid": [...]}`, as
        the options of the same names; `photo` is the path below the searched folder, or as given to the command.

        Raises:
            ValueError: A line cannot be read, naming file, line and field.
            OSError: The file cannot be read.
        """
        if file is None:
            return cls(faces=faces)
        # Only here, because few give a file and importing OpenSSL takes a while.
        import hashlib

        text = file.read_bytes()
        by_name = {}
        for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), start=1):
            if line.strip():
                try:
                    name, options = _entry(line)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{file}:{number}: {error}") from None
                by_name[name] = options
        return cls(by_name, faces, hashlib.sha256(text).hexdigest()[:16])

    def __bool__(self) -> bool:
        return self.faces or bool(self.by_name)

    def unmatched(self, sources: Iterable[Source]) -> list[str]:
        """Return the names of images that are not among the sources."""
        names = {name for source in sources for name in self._names(source)}
        return [name for name in self.by_name if name not in names]

    @staticmethod
    def _names(source: Source) -> tuple[str, str]:
        """Return what a source may be called: its path below the searched folder, and as given."""
        return (source.folder / source.path.name).as_posix(), source.path.as_posix()

    def signature(self) -> dict[str, Any]:
        """Return what decides about crops, for a run's record."""
        return {"content": self.digest, "faces": self.faces} if self else {}

    def options(self, options: CropOptions, source: Source, loaded: LoadedImage) -> CropOptions:
        """Return options with what is to be kept and avoided in one image.

        Faces are wishes, or with `strict` must not be cut.
        """
        own = next((self.by_name[name] for name in self._names(source) if name in self.by_name), None)
        keep = list(options.keep) + list((own or {}).get("keep", ()))
        if self.faces:
            from ..images.faces import find_faces

            weight = () if options.strict else (FACE_WEIGHT,)
            keep += [(*box, *weight) for box in find_faces(loaded)]
        return replace(options, keep=keep, avoid=list(options.avoid) + list((own or {}).get("avoid", ())))


def _entry(line: str) -> tuple[str, dict[str, Any]]:
    """Return an image and its options."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("photo"), str):
        raise ValueError("has no 'photo'")
    options = {name: value for name, value in entry.items() if name != "photo"}
    unknown = sorted(options.keys() - {"keep", "avoid"})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is neither 'photo', 'keep' nor 'avoid'")
    checked = CropOptions.from_kwargs(**options)
    return Path(entry["photo"]).as_posix(), {name: getattr(checked, name) for name in options}

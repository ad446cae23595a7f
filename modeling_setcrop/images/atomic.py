"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..image_reading import ImageFileError


@contextmanager
def atomic_writer(target: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that gets its name only when the block ends well; otherwise nothing is left behind.

    Raises:
        ImageFileError: The folder or the file cannot be written.
    """
    target = Path(target)
    part = target.with_name(f".{target.name[:64]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("wb")
    except OSError as error:
        raise ImageFileError(target, f"cannot be written ({error.strerror})") from None
    try:
        with file:
            yield file
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise

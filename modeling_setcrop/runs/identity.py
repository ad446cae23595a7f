"""Whether a file is still the one it was."""

from __future__ import annotations

import os
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any, cast

# A file may change again within the tick of its file system's clock, unseen by its times.
_TICK = 2_000_000_000


@dataclass(frozen=True)
class FileState:
    """A file at a moment.

    Attributes:
        size: In bytes.
        modified, changed: When its content was modified and its entry changed, in nanoseconds; nothing but the system
            sets the second.
        inode: Its number in the file system.
        seen: When this was asked, in nanoseconds.
        digest: Of its content, hexadecimal; empty where it was not read.
    """

    size: int
    modified: int
    changed: int
    inode: int
    seen: int
    digest: str = ""

    @classmethod
    def of(cls, file: IO[bytes], with_content: bool) -> FileState:
        """Return the state of an open file, which stands at its beginning afterwards."""
        state, seen = os.fstat(file.fileno()), time.time_ns()
        digest = ""
        if with_content:
            digest = content_digest(file)
            file.seek(0)
        return cls(state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, seen, digest)

    @classmethod
    def from_list(cls, values: list[Any]) -> FileState:
        """Return what `to_list` gave, perhaps read from JSON.

        Raises:
            TypeError: The values are not of that form.
        """
        return cls(*values)

    def to_list(self) -> list[Any]:
        """Return the fields, for JSON."""
        return list(astuple(self))

    def same_stat(self, other: FileState) -> bool:
        """Whether another state, of a moment ago, has the same size, time and number."""
        return (self.size, self.modified, self.inode) == (other.size, other.modified, other.inode)

    def is_still(self, path: str | os.PathLike[str]) -> bool:
        """Whether the file of that path has the same content; it is read only where its times leave that open.

        Raises:
            OSError: The file cannot be read.
        """
        now = os.stat(path)
        if now.st_size != self.size:
            return False
        unchanged = (now.st_mtime_ns, now.st_ctime_ns, now.st_ino) == (self.modified, self.changed, self.inode)
        # Windows gives the time of creation for that of change.
        if unchanged and os.name != "nt" and self.seen - self.changed > _TICK:
            return True
        with Path(path).open("rb") as file:
            return content_digest(file) == self.digest


def content_digest(file: IO[bytes]) -> str:
    """Return a digest of what a file holds from where it stands."""
    # Only here, because suggestions of one image need no digest and would wait for OpenSSL.
    import hashlib

    return hashlib.file_digest(cast(Any, file), lambda: hashlib.blake2b(digest_size=16)).hexdigest()

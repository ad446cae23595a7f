"""Files and folders that appear under their name only when they are whole."""

from __future__ import annotations

import errno
import io
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..image_reading import ImageFileError

PART_PREFIX, PART_SUFFIX = ".setcrop-", ".part"
"""How unfinished files and folders are named; a run that was killed may leave some."""

OLD_PREFIX = ".setcrop-old-"
"""What is put before the name of a folder while another takes its place."""

_numbers = itertools.count()


class FileWriteError(ImageFileError, OSError):
    """A file that cannot be written; the message is one line that names it."""

    def __init__(self, path: str | os.PathLike[str], error: OSError) -> None:
        super().__init__(path, f"cannot be written ({error.strerror or error})")


@contextmanager
def atomic_writer(target: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Give a binary file that gets its name only when the block ends well; otherwise nothing is left behind.

    Before it gets its name, all bytes have reached the disk. Folders that are missing are made.

    Raises:
        FileWriteError: The folder or the file cannot be written, or not all of it.
    """
    target = Path(target)
    part = _part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = _WholeFile(target, io.FileIO(part, "x+"))
    except OSError as error:
        raise FileWriteError(target, error) from None
    try:
        try:
            yield file
            file.finish()
        finally:
            # After a failed write, closing tries once more, in vain.
            with suppress(OSError):
                file.close()
        try:
            os.replace(part, target)
        except OSError as error:
            raise FileWriteError(target, error) from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(target: str | os.PathLike[str], keep_existing: bool = False) -> Iterator[Path]:
    """Give a folder that takes the target's place only when the block ends well; otherwise nothing is left behind.

    Args:
        target: An older folder of that name goes; it is moved aside until the new one is in its place, and
            `sweep_parts` brings it back should the process be killed between the two.
        keep_existing: A folder that another process has put there meanwhile stays, and the new one goes.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work, old = _part_of(target), target.with_name(f"{OLD_PREFIX}{target.name}")
    work.mkdir()
    try:
        yield work
        _open_to_readers(work)
        if keep_existing and target.is_dir():
            return
        if target.exists():
            os.replace(target, old)
        os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _settle(old, target)


@contextmanager
def atomic_files(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder whose files go into another one, each in one step, when the block ends well.

    Files of that name are replaced and others stay. When the block fails the folder is as it was.

    Raises:
        FileWriteError: The folder cannot be made or written.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    # Inside, since the folder may be a link to another disk.
    work = _part_of(folder / "files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_empty(folder):
            sweep_parts(folder)
        work.mkdir()
    except OSError as error:
        raise FileWriteError(folder, error) from None
    try:
        yield work
        _open_to_readers(work)
        for path in sorted(path for path in work.rglob("*") if path.is_file()):
            place = folder / path.relative_to(work)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def is_part(name: str) -> bool:
    """Whether a file or folder is called as what a killed run leaves half written."""
    return name.startswith(PART_PREFIX) and name.endswith(PART_SUFFIX)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing, or only what killed runs left half written."""
    return all(is_part(path.name) for path in folder.iterdir())


def _open_to_readers(work: Path) -> None:
    """Give the files in a new folder the permissions of new files; safetensors makes them their owner's alone."""
    permissions = work.stat().st_mode & 0o666
    for path in work.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | permissions)


def sweep_parts(folder: Path) -> None:
    """Remove what killed runs left half written in a folder; only while no other run writes there.

    A folder that was being replaced comes back.
    """
    for old in folder.glob(f"{OLD_PREFIX}*"):
        _settle(old, folder / old.name.removeprefix(OLD_PREFIX))
    for part in folder.glob(f"{PART_PREFIX}*{PART_SUFFIX}"):
        with suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def _settle(old: Path, target: Path) -> None:
    """Bring a folder that was moved aside back, or remove it where another has taken its place."""
    if not old.exists():
        return
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(old, target)


def _part_of(target: Path) -> Path:
    # Short, whatever the target's name: a file's name has at most 255 bytes.
    name = f"{PART_PREFIX}{os.getpid()}-{threading.get_ident()}-{next(_numbers)}{PART_SUFFIX}"
    return target.with_name(name)


class _WholeFile(io.BufferedRandom):
    """A file that is written whole or raises.

    Encoders that are given a file's descriptor write past Python and take a short write, which is how a full disk
    begins, for a whole one. So there is none to be had: everything goes through the buffer, which checks.
    """

    def __init__(self, target: Path, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._target = target
        self._end = 0

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")

    def write(self, data: Any, /) -> int:
        try:
            count = super().write(data)
        except OSError as error:
            raise FileWriteError(self._target, error) from None
        self._end = max(self._end, self.tell())
        return count

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise FileWriteError(self._target, error) from None

    def finish(self) -> None:
        """Bring everything to the disk.

        Raises:
            FileWriteError: Some of it did not arrive.
        """
        self.flush()
        descriptor = self.raw.fileno()
        try:
            with _unless_unsupported():
                os.fsync(descriptor)
            size = os.fstat(descriptor).st_size
            if size < self._end:
                raise OSError(errno.EIO, f"{size} of {self._end} bytes arrived")
        except OSError as error:
            raise FileWriteError(self._target, error) from None


@contextmanager
def _unless_unsupported() -> Iterator[None]:
    """Ignore that a file system cannot say when bytes are on the disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise

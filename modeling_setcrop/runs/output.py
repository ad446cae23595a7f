"""The output folder: where it may lie, and one run at a time in it."""

from __future__ import annotations

import errno
import getpass
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..images.atomic import FileWriteError

LOCK = ".setcrop.lock"
"""The file that a run holds in its output folder."""


class FolderInUse(ValueError):
    """Another run writes into the folder; the message is one line that says which."""


def nearest_folder(path: Path) -> tuple[Path, bool]:
    """Return the first of a path and its parents that exists, and whether it is a folder that files can be made in."""
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    return there, os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def check_output(out: Path, paths: Iterable[Path]) -> None:
    """Refuse an output folder into which crops cannot or must not be written, before anything is read.

    Args:
        out: The folder; it need not exist.
        paths: Files and folders whose images are to be cropped.

    Raises:
        ValueError: It is no folder, cannot be written, or holds the images.
    """
    if os.path.lexists(out) and not os.path.isdir(out):
        raise ValueError(f"--out {out}: a file, not a folder")
    there, writable = nearest_folder(out)
    if not writable:
        raise ValueError(f"--out {out}: no permission to write into {there}")
    target = os.path.join(os.path.realpath(out), "")
    for path in paths:
        folder = os.path.realpath(path if os.path.isdir(path) else path.parent)
        if os.path.join(folder, "").startswith(target):
            raise ValueError(f"--out {out}: the images lie in it ({path}); give another folder than the images'")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold an output folder for this run alone; the system lets go of it when the process ends, however it ends.

    Raises:
        FolderInUse: Another run holds it.
        FileWriteError: The folder cannot be written.
    """
    path = folder / LOCK
    file = _acquire(folder, path)
    try:
        holder = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "user": _user(),
            "since": time.strftime("%F %T"),
        }
        # On a full disk others are told less.
        with suppress(OSError):
            file.truncate(0)
            file.write(json.dumps(holder).encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()


def _acquire(folder: Path, path: Path) -> IO[bytes]:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b", buffering=0)
        except OSError as error:
            raise FileWriteError(folder, error) from None
        if not _try_lock(file):
            with file:
                raise FolderInUse(f"{folder}: another run is writing there{_described(file)}")
        # The run that held it before may have removed the file between our opening and locking it.
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            # Far behind what others read to see who holds it.
            file.seek(1 << 30)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks; a run goes on without, as they all did before.
        return error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
    return True


def _described(file: IO[bytes]) -> str:
    file.seek(0)
    try:
        holder: dict[str, Any] = json.loads(file.read())
        return " (process {process} of {user} on {host}, since {since})".format(**holder)
    except (ValueError, KeyError, TypeError):
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return str(os.getuid()) if hasattr(os, "getuid") else "?"

"""Files that are there whole or not at all, whoever is killed when.

A file is written under a hidden name in the folder where it is to be, synced, and moved to its place. What a killed
process has left under hidden names goes when the same place is written again. Called by all who keep results; knows
nothing of what files hold.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ENDING = ".partial"
# What a file system answers that has no way to sync a folder.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The hidden name under which to write the file. It takes its place at the end, or vanishes if that fails.

    Raises OSError.
    """
    partial = partial_of(path.parent, path.name)
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def put(path: Path, data: bytes) -> None:
    """Write a file under its own name, to the last byte, in a folder that is not yet what others look at."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def partial_of(home: Path, name: str) -> Path:
    """The hidden name, for this process, of something in `home`; what dead processes left of the same is removed."""
    start = f".{name}.{zlib.crc32(platform.node().encode()):08x}-"
    for left in _left(home, start):
        process = left.name[len(start) : -len(_ENDING)]
        if process.isdigit() and not _alive(int(process)):
            with suppress(OSError):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    return home / f"{start}{os.getpid()}{_ENDING}"


def is_partial(path: Path) -> bool:
    """Is it what a run that was cut off has left?"""
    return path.name.startswith(".") and path.name.endswith(_ENDING)


def _left(home: Path, start: str) -> list[Path]:
    try:
        names = os.listdir(home)
    except OSError:  # a folder that may be written need not be readable
        return []
    return [home / name for name in sorted(names) if name.startswith(start) and name.endswith(_ENDING)]


def _alive(process: int) -> bool:
    if os.name != "posix" or process == os.getpid():  # elsewhere signal 0 is a real one
        return process != os.getpid()
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def sync(path: Path) -> None:
    """Have a file's bytes on the disk: a full one may say so only now. Raises OSError."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that. Raises OSError."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(handle)


def why(error: OSError) -> str:
    """What the system said, in its own words even where a library has wrapped them."""
    wrapped = re.search(r"\[errno (\d+)\]", str(error), re.IGNORECASE)
    if error.strerror is None and wrapped is not None:
        return os.strerror(int(wrapped.group(1)))
    return error.strerror or (str(error).splitlines() or [type(error).__name__])[0]

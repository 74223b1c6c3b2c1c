"""Opens files that a user names: plain files (or pipes, where asked for), never devices, never waiting for ever.

Knows nothing of what is in them. What goes wrong is an OSError whose `strerror` says it in words; who calls it turns
that into an error of its own kind. Called by all that reads scenarios, traces, tables and policies.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_plain(path: Path) -> BufferedReader:
    """A file's bytes, to be closed by the caller.

    Raises OSError: missing, a folder, unreadable, a device, socket or pipe, a path that no file can have.
    """
    handle, is_pipe = _opened(path)
    if is_pipe:
        os.close(handle)
        raise OSError(errno.EINVAL, "is a pipe; write it to a file first", str(path))
    return os.fdopen(handle, "rb")


def plain_bytes(path: Path, most: int, pipes: bool = False) -> bytes:
    """All of a file; `pipes`: or of a pipe that somebody writes into.

    Raises OSError as `open_plain`, and for more than `most` bytes.
    """
    handle, is_pipe = _opened(path)
    data = b""
    with os.fdopen(handle, "rb") as file:
        if is_pipe:
            if not pipes:
                raise OSError(errno.EINVAL, "is a pipe; write it to a file first", str(path))
            data = _begun(handle, path)
        rest = file.read(most + 1)
        if rest is None:  # it would wait
            raise OSError(errno.EAGAIN, "has nothing to read", str(path))
        data += rest
    if len(data) > most:
        raise OSError(errno.EFBIG, f"is larger than {most:,} bytes, the most that is read", str(path))
    return data


def _opened(path: Path) -> tuple[int, bool]:
    """A handle that is open for reading, and whether it is of a pipe."""
    # Without O_NONBLOCK, opening a pipe waits until somebody writes into it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags)
    except ValueError:
        raise OSError(errno.EINVAL, "is not a file's name", ascii(str(path))) from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise OSError(errno.ENXIO, "is no file that can be read", str(path)) from None
        raise
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
        return handle, stat.S_ISFIFO(mode)
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    raise OSError(errno.EINVAL, "is a device, not a file", str(path))


def _begun(handle: int, path: Path) -> bytes:
    """What stands in a pipe already; it waits for more from then on. Raises OSError when nobody writes."""
    try:
        data = os.read(handle, 1 << 16)
    except BlockingIOError:  # there is a writer, who has not begun
        data = b""
    else:
        if not data:
            raise OSError(errno.EINVAL, "is a pipe into which nobody writes", str(path))
    os.set_blocking(handle, True)
    return data

"""Files within tar archives and folders, one after the other, and the beginning of a file for guessing its format.

Nothing here knows a particular format. Called by the formats beside it and by `sim.traces.formats`.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from sim.common.errors import TraceError
from sim.traces.formats.base import GZIP, SAMPLE_BYTES, Sample, opened, reading

SAMPLE_MEMBERS = 256  # listing a whole compressed archive would mean reading it
LARGEST_MEMBER = 1 << 26  # bytes of one file of an archive that is parsed as a whole; the largest known has 8 million


@dataclass(frozen=True)
class Member:
    """One file of an archive or folder: `where` for messages, `name` with its folders, and its bytes on demand.

    read: all of them; with a number, the first so many.
    """

    where: str
    name: str
    read: Callable[..., bytes]


def members(files: Sequence[Path], wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The files in tar archives (plain or .gz), in folders and sub-folders, and single files, in that order.

    Only those whose name is `wanted`; single files are always. Folders are read in the order of their names. A member
    must be read before the next is asked for. Raises TraceError: what cannot be read, and a source without any.
    """
    for path in files:
        found = False
        for member in _members_of(path):
            if member.name == "" or wanted(member.name):
                found = True
                yield member
        if not found:
            raise TraceError(f"{path}: no file of this format is inside; check that it is the right archive or folder")


def is_archive(path: Path) -> bool:
    """Whether a file is a tar archive, plain or compressed. Raises TraceError when it cannot be read."""
    with opened(path) as file:
        return _is_tar(file.read(512))


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _members_of(path: Path) -> Iterator[Member]:
    if path.is_dir():
        for inside in sorted(path.rglob("*")):
            name = inside.relative_to(path).as_posix()
            if inside.is_file() and not _is_hidden(name):
                yield Member(str(inside), name, _reader(inside))
    elif is_archive(path):
        with opened(path) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            for info in archive:
                if not info.isfile() or _is_hidden(info.name):
                    continue
                where = f"{path}: {PurePosixPath(info.name)}"
                yield Member(where, info.name, _tar_reader(path, archive, info, where))
    else:
        yield Member(str(path), "", _reader(path))


def _is_hidden(name: str) -> bool:
    """What systems leave beside files: .DS_Store, ._name, __MACOSX/name."""
    return any(part.startswith((".", "__")) for part in PurePosixPath(name).parts if part != "..")


def _reader(path: Path) -> Callable[..., bytes]:
    def read(first: int | None = None) -> bytes:
        with opened(path) as file:
            return _limited(file, str(path)) if first is None else file.read(first)

    return read


def _tar_reader(path: Path, archive: tarfile.TarFile, info: tarfile.TarInfo, where: str) -> Callable[..., bytes]:
    def read(first: int | None = None) -> bytes:
        file = archive.extractfile(info)
        assert file is not None
        with reading(path):
            data = _limited(file, where)
        if len(data) < info.size:
            raise TraceError(f"{where}: the archive is cut off here; copy or download it again")
        if data.startswith(GZIP):
            with reading(Path(where)), gzip.open(io.BytesIO(data), "rb") as plain:
                return _limited(plain, where) if first is None else plain.read(first)  # type: ignore[arg-type]
        return data

    return read


def _limited(file: IO[bytes], where: str) -> bytes:
    data = file.read(LARGEST_MEMBER + 1)
    if len(data) > LARGEST_MEMBER:
        raise TraceError(f"{where}: has more than {LARGEST_MEMBER:,} bytes, too large for one file of an archive")
    return data


def sample_of(path: Path) -> Sample:
    """The beginning of a file, an archive or a folder. Raises TraceError: nothing there, unreadable, damaged."""
    if not path.is_dir():
        with opened(path) as file:
            head = file.read(SAMPLE_BYTES)
        if not _is_tar(head):
            return Sample(path.name, head)
    names: list[str] = []
    first: bytes | None = None
    for member in _members_of(path):
        names.append(member.name)
        if first is None and member.name.removesuffix(".gz").endswith((".csv", ".json", ".jsonl")):
            first = member.read(SAMPLE_BYTES)[:SAMPLE_BYTES]
        if len(names) == SAMPLE_MEMBERS:
            break
    if not names:
        raise TraceError(f"{path}: no files are inside; check that it is the right archive or folder")
    return Sample(path.name, first or b"", tuple(names))

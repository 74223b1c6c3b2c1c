"""The memory of the CPU in an accelerator's place: pages that are there already, handed out again and again.

A GPU's memory is all there from the start. Fresh pages of a process are not: the kernel clears each when it is first
written, the hypervisor below may have to find it, and a load would mostly measure that. So pages are written once
here when the device first needs so many, and kept. device.py counts the budget; nothing here does.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

import torch

_ALIGN = 2 << 20  # a huge page
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def private_memory(size: int, kind: type[mmap.mmap] = mmap.mmap) -> mmap.mmap:
    """Anonymous memory of this process, in huge pages where the system has them: fewer misses, quicker to pin."""
    memory = kind(-1, size, **_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


@dataclass
class _Segment:
    """One mapping; `holes` are its free (begin, end), in order, never touching each other."""

    bytes: torch.Tensor
    holes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return int(self.bytes.numel())

    @property
    def free(self) -> bool:
        return self.holes == [(0, self.size)]


class ResidentPages:
    """Touched memory in segments, given out by best fit; whole free segments go when all would be above `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._segments: list[_Segment] = []
        self._taken: dict[int, tuple[_Segment, int, int]] = {}  # by address

    def warm(self) -> None:
        """Have all memory that it may keep, in one segment, written to."""
        if not self._segments:
            self._add(self.most // _ALIGN * _ALIGN)

    def take(self, size: int) -> torch.Tensor:
        """`size` bytes that have been written to before; what they hold means nothing."""
        length = -(-size // _ALIGN) * _ALIGN
        holes = [
            (end - begin, number, begin)
            for number, segment in enumerate(self._segments)
            for begin, end in segment.holes
            if end - begin >= length
        ]
        if not holes:
            self._add(length)
            return self.take(size)
        room, number, begin = min(holes)
        segment = self._segments[number]
        place = segment.holes.index((begin, begin + room))
        segment.holes[place : place + 1] = [(begin + length, begin + room)] if room > length else []
        block = segment.bytes[begin : begin + size]
        self._taken[block.data_ptr()] = (segment, begin, begin + length)
        return block

    def give_back(self, block: torch.Tensor) -> None:
        """The block may be handed out again; the caller holds no view of it any more."""
        segment, begin, end = self._taken.pop(block.data_ptr())
        joined: list[tuple[int, int]] = []
        for low, high in sorted([*segment.holes, (begin, end)]):
            if joined and joined[-1][1] == low:
                joined[-1] = (joined[-1][0], high)
            else:
                joined.append((low, high))
        segment.holes = joined

    def _add(self, length: int) -> None:
        kept = sum(segment.size for segment in self._segments)
        for segment in sorted(self._segments, key=lambda each: each.size):
            if kept + length > self.most and segment.free:
                self._segments.remove(segment)
                kept -= segment.size
        tensor = torch.frombuffer(private_memory(length), dtype=torch.uint8)
        tensor.zero_()
        self._segments.append(_Segment(tensor, [(0, length)]))

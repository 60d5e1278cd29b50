"""The dull model with guest_memfd: rules G1 to G12, written from docs/rules.md alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EBADF, EINVAL

from model import LOG_DIRTY_PAGES, PAGE_SIZE, READONLY, Model

GUEST_MEMFD = 4
FOREIGN, PLAIN, BAD = "other", "plain", "bad"
File = int | str
Range = tuple[int, int, File]  # [start, end) of a file


@dataclass
class MemfdModel:
    """A Model of one address space that knows which slots have which ranges of which files."""

    plain: Model
    sizes: dict[File, int] = field(default_factory=dict)  # of open files
    bound: dict[int, Range] = field(default_factory=dict)  # by id; of closed files too
    private: set[int] = field(default_factory=set)  # ids

    def create(self, file: int, size: int, flags: int) -> int:
        if flags & ~3 or size == 0 or size % PAGE_SIZE or size >= 1 << 63:
            return -EINVAL
        self.sizes[file] = size
        return 0

    def close(self, file: int) -> None:
        del self.sizes[file]

    def set_region(self, slot: int, flags: int, gpa: int, size: int, hva: int) -> int:
        return self.set_region2(slot, flags, gpa, size, hva, BAD, 0, old_call=True)

    def set_region2(
        self,
        slot: int,
        flags: int,
        gpa: int,
        size: int,
        hva: int,
        file: File,
        offset: int,
        *,
        old_call: bool = False,
    ) -> int:
        wants = bool(flags & GUEST_MEMFD)
        if wants and (old_call or flags & (LOG_DIRTY_PAGES | READONLY)):
            return -EINVAL  # G1
        if wants and (offset % PAGE_SIZE or offset + size >= 1 << 64):
            return -EINVAL  # G2
        id = slot & 0xFFFF
        rest = flags & ~GUEST_MEMFD if wants else flags
        if size == 0:
            result = -self.plain.set_region(slot, rest, gpa, 0, hva).errno
            if result == 0:  # G3
                self.private.discard(id)
                self.bound.pop(id, None)
            return result
        if slot >> 16 == 0 and (id in self.private or (wants and id in self.plain.slots[0])):
            # Rules 1, 2 and 4 have the same errno as G5.
            return -EINVAL
        answer = self.plain.plan(slot >> 16, id, rest, gpa, size, hva)
        if wants and (answer.errno == 0 or answer.rule == 7):
            refused = self._refusal(id, file, offset, offset + size)  # G7, before rule 7
            if refused:
                return refused
        result = -self.plain.set_region(slot, rest, gpa, size, hva).errno
        if wants and result == 0:
            self.private.add(id)
            self.bound[id] = offset, offset + size, file
        return result

    def _refusal(self, id: int, file: File, offset: int, end: int) -> int:
        if file in (FOREIGN, PLAIN):
            return -EINVAL
        if file not in self.sizes:
            return -EBADF
        if end > self.sizes[file]:
            return -EINVAL
        for start, last, other in self.bound.values():
            if other == file and start < end and offset < last:
                return -EINVAL
        return 0

"""The segments of a snapshot: runs of guest memory, and where each of them is in the file.

There may be one for every page, so that here is all that is done for each.
"""

import os
from bisect import bisect_right, insort

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from memslots.core.alloc cimport alloc_free, alloc_zeroed
from memslots.core.dirtylog cimport le64
from memslots.core.units cimport PAGE_SHIFT, gfn_t, gpa_t, gpa_to_gfn, hva_t

from memslots.backing import address_of
from memslots.errors import NotMappedError, ReadOnlyError

cdef enum:
    # Of an Elf64_Phdr. Its words: type and flags, offset in the file, virtual address, physical
    # address, size in the file, size in memory, alignment.
    HEADER_WORDS = 7
    HEADER_SIZE = 8 * HEADER_WORDS
    PT_LOAD = 1
    PF_X = 1
    PF_W = 2
    PF_R = 4
    # The first of the flags that ELF leaves to operating systems: the number of an address space.
    SPACE_SHIFT = 20
    SPACE_MASK = 0xFF
    ALIGNMENT = 1 << PAGE_SHIFT
    FEW_SEGMENTS = 16  # so many there is room for to begin with
    COMPARED = 1 << 20  # bytes at a time

cdef struct segment:
    gpa_t gpa
    uint64_t size  # in bytes, at least 1
    uint64_t offset  # in the file; while it is laid out, from the file's first byte of memory on
    uint32_t flags  # p_flags

cdef inline uint32_t space_of(const segment *at) noexcept nogil:
    return at.flags >> SPACE_SHIFT & SPACE_MASK


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class Window:
    """The slot that was used last: many segments may be in the same."""

    cdef list spaces  # a GuestMemory for each address space
    cdef list faces  # their read faces
    cdef bint restoring  # whether it is written to, in READONLY slots too
    cdef uint32_t as_id
    cdef gpa_t gpa  # its first byte
    cdef uint64_t size  # in bytes; 0: there is none yet
    cdef hva_t hva  # where it is
    cdef object view  # its memory
    cdef bint readonly  # the view
    cdef bint writable  # whether it can be restored

    cdef uint64_t reach(self, uint32_t as_id, gpa_t gpa, uint64_t size) except 0:
        """How many of `size` bytes from `gpa` on are in the slot that holds the first.

        It is the window's then. Raises what `GuestMemory.views` raises where there is none.
        """
        while as_id != self.as_id or gpa - self.gpa >= self.size:
            self.move(as_id, gpa, size)
        return min(size, self.size - (gpa - self.gpa))

    @cython.boundscheck(True)
    cdef int move(self, uint32_t as_id, gpa_t gpa, uint64_t size) except -1:
        space = self.spaces[as_id]
        slot = self.faces[as_id].lookup(gpa_to_gfn(gpa))
        view = None
        if slot is not None:
            begin = slot.guest_phys_addr
            try:
                view = space.views(begin, slot.memory_size)[0]
            except NotMappedError:
                pass  # not all of its memory is known
        if view is None:
            begin = gpa
            view = space.views(begin, size)[0]
        self.writable = True
        if self.restoring:
            try:
                view = space._restore_views(begin, len(view))[0]
            except ReadOnlyError:
                self.writable = False
        self.view = view
        self.readonly = view.readonly
        self.hva = address_of(view)
        self.as_id = as_id
        self.gpa = begin
        self.size = len(view)
        return 0

    cdef object part(self, gpa_t gpa, uint64_t size):
        """Memory that is in it."""
        cdef uint64_t begin = gpa - self.gpa
        return self.view[begin : begin + size]


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class Held:
    """The host memory that a file holds, and where, from its first byte of memory on."""

    cdef list pieces  # (hva, end, offset), by hva
    cdef hva_t end  # the highest of these
    cdef uint64_t size  # of all, in bytes

    def __cinit__(self):
        self.pieces = []

    cdef bint find(self, hva_t hva, uint64_t size, uint64_t *offset) except -1:
        """Whether all of it is in one piece, and where."""
        cdef Py_ssize_t at
        if hva >= self.end:
            return False
        at = bisect_right(self.pieces, (hva, 1 << 64, 0)) - 1
        if at < 0:
            return False
        begin, end, found = self.pieces[at]
        if end - hva < size:
            return False
        offset[0] = found + (hva - begin)
        return True

    cdef int add(self, hva_t hva, uint64_t size) except -1:
        """One more, after all others."""
        piece = (hva, hva + size, self.size)
        if hva < self.end:
            insort(self.pieces, piece)
        else:
            self.pieces.append(piece)
        self.end = max(self.end, hva + size)
        self.size += size
        return 0


@cython.final
@cython.auto_pickle(False)
cdef class Batch:
    """Memory of segments that is side by side in the file: for one call of preadv, if it can be."""

    cdef readonly uint64_t offset
    cdef readonly list views
    cdef size_t first  # the segments that these are of
    cdef size_t end


@cython.final
@cython.auto_pickle(False)
cdef class Segments:
    """Runs of guest memory, each in one slot, in the order of a file. For one thread.

    Either `lay_out` makes them, or `take` has them from a file.
    """

    cdef segment *all
    cdef size_t count  # of them
    cdef size_t room  # for so many there is memory
    cdef readonly uint64_t size  # of the memory in the file, in bytes
    cdef Window window

    def __cinit__(self, mem):
        vm = mem.vm
        self.window = Window.__new__(Window)
        self.window.spaces = [mem.address_space(as_id) for as_id in range(vm.address_spaces)]
        self.window.faces = [vm.address_space(as_id) for as_id in range(vm.address_spaces)]

    def __dealloc__(self):
        alloc_free(self.all)

    def __reduce__(self):
        raise TypeError("Segments cannot be pickled or copied: they are of memory")

    def __len__(self):
        return self.count

    cdef segment *append(self) except NULL:
        cdef segment *more
        cdef size_t room
        if self.count == self.room:
            room = 2 * self.room if self.room else FEW_SEGMENTS
            more = <segment *>alloc_zeroed(room * sizeof(segment))
            if more is NULL:
                raise MemoryError(f"no memory for more than {self.count} segments")
            if self.count:
                memcpy(more, self.all, self.count * sizeof(segment))
            alloc_free(self.all)
            self.all = more
            self.room = room
        self.count += 1
        return &self.all[self.count - 1]

    # To a file

    def lay_out(self, runs):
        """Segments of runs of guest pages: (as_id, start_gfn, end_gfn).

        Returns a list of memoryviews: the memory that is to be in the file, in order. Host memory
        that several slots are on is there once, if one that comes before holds all of it.

        NotMappedError.
        """
        cdef Held held = Held.__new__(Held)
        cdef list views = []
        cdef uint32_t as_id
        cdef gfn_t start, end
        cdef gpa_t gpa
        cdef uint64_t left, size
        for as_id, start, end in runs:
            gpa = start << PAGE_SHIFT
            left = (end - start) << PAGE_SHIFT
            while left:
                size = self.window.reach(as_id, gpa, left)
                self.put(held, gpa, size, views)
                gpa += size
                left -= size
        self.size = held.size
        return views

    cdef int put(self, Held held, gpa_t gpa, uint64_t size, list views) except -1:
        """A segment of what is in the window."""
        cdef segment *new = self.append()
        cdef hva_t hva = self.window.hva + (gpa - self.window.gpa)
        new.gpa = gpa
        new.size = size
        new.flags = PF_R | PF_X | self.window.as_id << SPACE_SHIFT
        if not self.window.readonly:
            new.flags |= PF_W
        if not held.find(hva, size, &new.offset):
            new.offset = held.size
            views.append(self.window.part(gpa, size))
            held.add(hva, size)
        return 0

    def table(self, uint64_t begin):
        """Their program headers, for a file whose memory begins at `begin`: bytes."""
        cdef bytes table = PyBytes_FromStringAndSize(NULL, HEADER_SIZE * self.count)
        cdef char *out = PyBytes_AS_STRING(table)
        cdef uint64_t words[HEADER_WORDS]
        cdef const segment *at
        cdef size_t i
        words[6] = le64(ALIGNMENT)
        for i in range(self.count):
            at = &self.all[i]
            words[0] = le64(PT_LOAD | <uint64_t>at.flags << 32)
            words[1] = le64(begin + at.offset)
            words[2] = words[3] = le64(at.gpa)
            words[4] = words[5] = le64(at.size)
            memcpy(out + HEADER_SIZE * i, words, HEADER_SIZE)
        return table

    # From a file

    def take(self, bytes table not None, uint64_t length):
        """The segments that a file of `length` bytes has, of its program headers.

        ValueError: something is wrong with one of them.
        """
        cdef const char *headers = PyBytes_AS_STRING(table)
        cdef uint64_t spaces = len(self.window.spaces)
        cdef uint64_t words[HEADER_WORDS]
        cdef segment found
        cdef Py_ssize_t i
        cdef int n
        for i in range(len(table) // HEADER_SIZE):
            memcpy(words, headers + HEADER_SIZE * i, HEADER_SIZE)
            for n in range(HEADER_WORDS):
                words[n] = le64(words[n])
            if <uint32_t>words[0] != PT_LOAD or words[5] == 0:
                continue
            found.flags = words[0] >> 32
            found.offset = words[1]
            found.gpa = words[3]
            found.size = words[5]
            if words[4] != found.size:
                raise ValueError(
                    f"gpa {found.gpa:#x}: {words[4]:#x} of {found.size:#x} bytes are there"
                )
            if found.offset > length or found.size > length - found.offset:
                raise ValueError(
                    f"cut off: gpa {found.gpa:#x} ends at {int(found.offset) + found.size}, of"
                    f" {length} bytes"
                )
            if found.gpa + found.size - 1 < found.gpa:
                raise ValueError(
                    f"{found.size:#x} bytes from gpa {found.gpa:#x} go beyond the last guest"
                    " address"
                )
            if space_of(&found) >= spaces:
                raise ValueError(
                    f"gpa {found.gpa:#x} is of address space {space_of(&found)}; here are {spaces}"
                )
            self.append()[0] = found
            self.size += found.size

    def places(self, int fd, Py_ssize_t most):
        """Where all that `take` has found is to be read to: a list of Batches.

        One that has `most` views takes no more segments. What cannot be written is in none: it must
        have the bytes of the file `fd`, as a firmware's memory may.

        NotMappedError; ReadOnlyError where they are others; OSError.
        """
        cdef list batches = []
        cdef Batch batch = None
        cdef uint64_t upto = 0  # where in the file the batch ends
        cdef const segment *at
        cdef uint64_t done, size
        cdef size_t i
        self.window.restoring = True
        for i in range(self.count):
            at = &self.all[i]
            done = 0
            while done < at.size:
                size = self.window.reach(space_of(at), at.gpa + done, at.size - done)
                if not self.window.writable:
                    self.compare(at.gpa + done, size, fd, at.offset + done)
                    done += size
                    continue
                if (
                    batch is None
                    or upto != at.offset + done
                    or (done == 0 and len(batch.views) >= most)
                ):
                    batch = Batch.__new__(Batch)
                    batch.offset = at.offset + done
                    batch.views = []
                    batch.first = i
                    batches.append(batch)
                batch.views.append(self.window.part(at.gpa + done, size))
                batch.end = i + 1
                done += size
                upto = at.offset + done
        return batches

    cdef int compare(self, gpa_t gpa, uint64_t size, int fd, uint64_t offset) except -1:
        """ReadOnlyError unless what is in the window has the bytes of the file at `offset`."""
        view = self.window.part(gpa, size)
        cdef uint64_t begin
        for begin in range(0, size, COMPARED):
            piece = view[begin : begin + COMPARED]
            if os.pread(fd, len(piece), offset + begin) != piece:
                self.window.spaces[self.window.as_id]._restore_views(gpa, size)  # raises
        return 0

    def mark(self, Batch batch not None):
        """Mark as written what a batch is of."""
        cdef const segment *at
        cdef size_t i
        for i in range(batch.first, min(batch.end, self.count)):
            at = &self.all[i]
            self.window.spaces[space_of(at)].mark_dirty(at.gpa, at.size)

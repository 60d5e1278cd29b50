"""The segments of a snapshot: runs of guest memory, and where each of them is in the file.

A snapshot may have a segment for every page, so all work for each segment is here, in Cython. Long
work is done one part of the segments at a time. Between two calls Python handles signals, and other
threads get the GIL.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy

from memslots.core.alloc cimport alloc_free, alloc_zeroed
from memslots.core.endian cimport endian_le64
from memslots.core.guarded cimport guarded_read
from memslots.core.machine cimport machine
from memslots.core.rbtree cimport (
    rb_end,
    rb_floor,
    rb_init,
    rb_insert_after,
    rb_node,
    rb_root,
    rb_step,
)
from memslots.core.units cimport LAST_GFN, PAGE_SHIFT, gfn_t, gpa_t, gpa_to_gfn, hva_t
from memslots.dirty.logs cimport mark_range
from memslots.memory.backing cimport Backing
from memslots.memslots cimport memslots_machine

from memslots.errors import NotMappedError, ReadOnlyError
from memslots.memory.absent import pages_there
from memslots.memory.backing import address_of

cdef enum:
    # The words of an Elf64_Phdr: type and flags, offset in the file, virtual address, physical
    # address, size in the file, size in memory, alignment.
    HEADER_WORDS = 7
    HEADER_SIZE = 8 * HEADER_WORDS
    PT_LOAD = 1
    PF_X = 1
    PF_W = 2
    PF_R = 4
    # The address space is in the first eight flags that ELF leaves to operating systems.
    SPACE_SHIFT = 20
    SPACE_MASK = 0xFF
    ALIGNMENT = 1 << PAGE_SHIFT
    PAGE_WORDS = 512  # of 64 bits
    PART = 1024  # segments: one call of preadv can read them if each is one span
    COMPARED = 1 << 20  # bytes to compare at a time

cdef struct segment:  # a cache line
    rb_node node  # in `held`, if the segment is in that tree
    hva_t hva  # the key there: the first byte in host memory; 0 for segments from a file
    gpa_t gpa
    uint64_t size  # in bytes, at least 1
    uint64_t offset  # in the file; after lay_out, from the file's first byte of memory on
    uint32_t flags  # p_flags
    uint32_t zeros  # 1: all bytes are zeros, and none of them is in the file

cdef struct segment_part:
    segment_part *next  # NULL: this is the last part
    size_t count  # of segments in this part
    segment all[PART]

cdef enum:
    HVA_OFFSET = sizeof(rb_node)  # from a node of `held` to its key


cdef int order(const void *one, const void *other) noexcept nogil:
    """Compares for qsort: by address space, then by guest address."""
    cdef const segment *a = (<const segment **>one)[0]
    cdef const segment *b = (<const segment **>other)[0]
    if space_of(a) != space_of(b):
        return 1 if space_of(a) > space_of(b) else -1
    return (a.gpa > b.gpa) - (a.gpa < b.gpa)


cdef inline uint32_t space_of(const segment *at) noexcept nogil:
    return at.flags >> SPACE_SHIFT & SPACE_MASK


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class Window:
    """The memory of the slot that was used last. Often the next segment is in the same slot."""

    cdef list spaces  # a GuestMemory for each address space
    cdef list readers  # a reader for each address space
    cdef bint restoring  # whether the views are for writing, in READONLY slots too
    cdef uint32_t as_id
    cdef gpa_t gpa  # of the first byte
    cdef uint64_t size  # in bytes; 0: the window is empty
    cdef bint whole  # whether the window is all of the slot's memory that adjoins in one Backing
    cdef hva_t hva  # of the first byte
    cdef object view  # the memory
    cdef bint readonly  # whether the view is read-only
    cdef object refusal  # the error why the memory cannot be restored, or None

    cdef uint64_t reach(self, uint32_t as_id, gpa_t gpa, uint64_t size) except 0:
        """Moves the window to the slot that holds `gpa`.

        Returns how many of `size` bytes from `gpa` on are in the slot. Raises what
        `GuestMemory.views` raises if no slot holds `gpa`.
        """
        if not self.whole:
            self.size = 0
        while as_id != self.as_id or gpa - self.gpa >= self.size:
            self.move(as_id, gpa, size)
        return min(size, self.size - (gpa - self.gpa))

    @cython.boundscheck(True)  # as_id comes unchecked from the caller
    cdef int move(self, uint32_t as_id, gpa_t gpa, uint64_t size) except -1:
        self.size = 0
        space = self.spaces[as_id]
        slot = self.readers[as_id].lookup(gpa_to_gfn(gpa))
        view = None
        if slot is not None:
            begin = slot.guest_phys_addr
            try:
                for part in space.views(begin, slot.memory_size):
                    if gpa - begin < len(part):
                        view = part
                        break
                    begin += len(part)
            except NotMappedError:
                pass  # not all memory of the slot is known
        self.whole = view is not None
        if view is None:
            begin = gpa
            view = space.views(begin, size)[0]
        self.refusal = None
        if self.restoring:
            try:
                view = space._restore_views(begin, len(view))[0]
            except ReadOnlyError as error:
                self.refusal = error
        self.view = view
        self.readonly = view.readonly
        self.hva = address_of(view)
        self.as_id = as_id
        self.gpa = begin
        self.size = len(view)
        return 0

    cdef object part(self, gpa_t gpa, uint64_t size):
        """Returns the memory of a range that is in the window."""
        cdef uint64_t begin = gpa - self.gpa
        return self.view[begin : begin + size]

    cdef int compare(self, gpa_t gpa, uint64_t size, int fd, uint64_t offset) except -1:
        """Raises ReadOnlyError unless memory in the window has the file's bytes at `offset`."""
        space = self.spaces[self.as_id]
        cdef uint64_t begin
        cdef uint64_t length
        for begin in range(0, size, COMPARED):
            PyErr_CheckSignals()
            length = min(size - begin, <uint64_t>COMPARED)
            # Not through the view: the memory may go away.
            if os.pread(fd, length, offset + begin) != space.read(gpa + begin, length):
                space._restore_views(gpa, size)  # raises for `gpa`
                raise self.refusal
        return 0


cdef bint is_zeros(hva_t hva, uint64_t offset, const char *touched, bint may_fault) noexcept nogil:
    """Returns whether a page is all zeros. A page that has gone away is not."""
    cdef uint64_t copy[PAGE_WORDS]
    cdef const uint64_t *word = <const uint64_t *>(hva + offset)
    cdef uint64_t any = 0
    cdef int i, k
    if touched is not NULL and not touched[offset >> PAGE_SHIFT]:
        return True
    if may_fault:
        if guarded_read(copy, hva + offset, ALIGNMENT) != ALIGNMENT:
            return False
        word = copy
    for i in range(0, PAGE_WORDS, 64):
        for k in range(64):
            any |= word[i + k]
        if any:
            return False
    return True


# no_gc_clear, here and below: the collector must not clear the objects that pointers point into.
@cython.final
@cython.no_gc_clear
@cython.auto_pickle(False)
cdef class Batch:
    """Memory of segments whose bytes adjoin in the file: for one call of preadv if possible."""

    cdef readonly uint64_t offset
    cdef readonly list views
    cdef readonly bint zeros  # whether the views become zeros; the file has no bytes for them
    cdef Segments home  # keeps the segments
    cdef const segment *first  # the first segment of the batch
    cdef size_t count  # of its segments

    def __cinit__(self):
        self.views = []

    def mark(self):
        """Marks all memory of the batch as written. Cannot fail."""
        cdef const segment *at
        cdef size_t i
        for i in range(self.count):
            at = &self.first[i]
            mark_range(
                self.home.m,
                space_of(at),
                gpa_to_gfn(at.gpa),
                gpa_to_gfn(at.gpa + at.size - 1),
            )


@cython.final
@cython.no_gc_clear
@cython.auto_pickle(False)
cdef class Segments:
    """Runs of guest memory, in the order of a file. One thread at a time may use it.

    `lay_out` makes segments from slots, each in one slot. `take` reads segments from a file.
    """

    cdef object vm  # keeps the machine alive
    cdef machine *m
    cdef Window window
    cdef segment_part *head  # a list of parts, all full but the last; NULL: there are none
    cdef segment_part *tail
    cdef readonly Py_ssize_t parts  # the number of parts
    cdef readonly uint64_t size  # of the memory in the file, in bytes
    cdef rb_root held  # by hva: the segments that put their memory into the file first

    def __cinit__(self, mem):
        rb_init(&self.held, HVA_OFFSET, NULL)
        self.window = Window.__new__(Window)
        self.vm = mem.vm
        self.m = memslots_machine(self.vm)
        spaces = range(self.m.lim.nspaces)
        self.window.spaces = [mem.address_space(as_id) for as_id in spaces]
        self.window.readers = [self.vm.address_space(as_id) for as_id in spaces]

    def __dealloc__(self):
        cdef segment_part *part = self.head
        cdef segment_part *next
        while part is not NULL:
            next = part.next
            alloc_free(part)
            part = next

    def __reduce__(self):
        raise TypeError("Segments cannot be pickled or copied: they are of memory")

    def __len__(self):
        return 0 if self.tail is NULL else (self.parts - 1) * PART + self.tail.count

    cdef segment *append(self) except NULL:
        """Adds a segment whose fields are all 0."""
        cdef segment_part *new
        cdef segment *at
        if self.tail is NULL or self.tail.count == PART:
            new = <segment_part *>alloc_zeroed(sizeof(segment_part))
            if new is NULL:
                raise MemoryError(f"no memory for more than {len(self)} segments")
            if self.tail is NULL:
                self.head = new
            else:
                self.tail.next = new
            self.tail = new
            self.parts += 1
        at = &self.tail.all[self.tail.count]
        self.tail.count += 1
        return at

    # To a file

    def lay_out(self, runs):
        """Adds the segments of runs of guest pages: (as_id, start_gfn, end_gfn).

        Returns a list of memoryviews: the memory to write to the file, in order. A segment adds no
        memory if an earlier one holds all its host memory. Only one is tried: the nearest that
        begins at or before it in host memory.

        NotMappedError. O(log s) for each of s segments.
        """
        cdef list views = []
        cdef uint32_t as_id
        cdef gfn_t start, end
        cdef gpa_t gpa
        cdef uint64_t left, size
        for as_id, start, end in runs:
            if not start <= end <= LAST_GFN:
                raise ValueError(f"[{start:#x}, {end:#x}) is not a run of guest pages")
            gpa = start << PAGE_SHIFT
            left = (end - start) << PAGE_SHIFT
            while left:
                size = self.window.reach(as_id, gpa, left)
                if self.put(gpa, size):
                    views.append(self.window.part(gpa, size))
                gpa += size
                left -= size
        return views

    cdef bint put(self, gpa_t gpa, uint64_t size) except -1:
        """Adds a segment of memory in the window. Returns whether it adds memory to the file."""
        cdef segment *new = self.append()
        cdef rb_node *before
        cdef const segment *found
        new.hva = self.window.hva + (gpa - self.window.gpa)
        new.gpa = gpa
        new.size = size
        new.flags = PF_R | PF_X | self.window.as_id << SPACE_SHIFT
        if not self.window.readonly:
            new.flags |= PF_W
        before = rb_floor(&self.held, new.hva, HVA_OFFSET)
        if before is not NULL:
            found = <const segment *>before  # the node is the segment's first member
            if new.hva - found.hva < found.size and size <= found.size - (new.hva - found.hva):
                new.offset = found.offset + (new.hva - found.hva)
                return False
        rb_insert_after(&self.held, before, &new.node)
        new.offset = self.size
        self.size += size
        return True

    def sparse(self, mem, list views not None):
        """Returns new Segments without the pages of zeros, and the memory to write to the file.

        `views` is the result of lay_out. Pages that were never touched are not read, if the kernel
        can tell which they are. O(bytes).
        """
        cdef Segments made = Segments(mem)
        cdef list memory = []
        cdef const segment_part *part = self.head
        cdef const segment *at
        cdef uint64_t laid_out = 0
        cdef Py_ssize_t n = 0
        cdef size_t i
        while part is not NULL:
            for i in range(part.count):
                at = &part.all[i]
                PyErr_CheckSignals()
                if at.offset == laid_out:  # the first segment with this memory
                    made.put_without_zeros(at, views[n], memory)
                    laid_out += at.size
                    n += 1
                else:
                    made.put_again(at)
            part = part.next
        return made, memory

    cdef int put_without_zeros(self, const segment *at, object view, list memory) except -1:
        """Adds a segment for each run of pages that are all zeros, or all not."""
        cdef object backing = view.obj
        cdef bytes there = pages_there(backing, at.hva, at.size)
        cdef const char *touched = PyBytes_AS_STRING(there) if there is not None else NULL
        cdef bint may_fault = (<Backing?>backing).may_fault
        cdef uint64_t begin = 0
        cdef uint64_t end
        cdef bint zeros
        while begin < at.size:
            PyErr_CheckSignals()
            with nogil:
                zeros = is_zeros(at.hva, begin, touched, may_fault)
                end = begin + ALIGNMENT
                while end < at.size and is_zeros(at.hva, end, touched, may_fault) == zeros:
                    end += ALIGNMENT
            self.put_part(at, begin, end - begin, zeros)
            if not zeros:
                memory.append(view[begin:end])
            begin = end
        return 0

    cdef int put_again(self, const segment *at) except -1:
        """Adds segments for memory that earlier segments hold: in the file, or as zeros."""
        cdef uint64_t begin = 0
        cdef uint64_t size
        cdef rb_node *before
        cdef rb_node *after
        cdef const segment *found
        while begin < at.size:
            size = at.size - begin
            before = rb_floor(&self.held, at.hva + begin, HVA_OFFSET)
            found = <const segment *>before
            if before is not NULL and at.hva + begin - found.hva < found.size:
                size = min(size, found.size - (at.hva + begin - found.hva))
                self.append_part(at, begin, size).offset = (
                    found.offset + (at.hva + begin - found.hva)
                )
            else:
                after = rb_step(before, 1) if before is not NULL else rb_end(&self.held, 0)
                if after is not NULL:
                    size = min(size, (<const segment *>after).hva - (at.hva + begin))
                self.append_part(at, begin, size).zeros = 1
            begin += size
        return 0

    cdef segment *append_part(
        self, const segment *at, uint64_t begin, uint64_t size
    ) except NULL:
        cdef segment *new = self.append()
        new.hva = at.hva + begin
        new.gpa = at.gpa + begin
        new.size = size
        new.flags = at.flags
        return new

    cdef int put_part(self, const segment *at, uint64_t begin, uint64_t size, bint zeros) except -1:
        cdef segment *new = self.append_part(at, begin, size)
        new.zeros = zeros
        if not zeros:
            rb_insert_after(&self.held, rb_floor(&self.held, new.hva, HVA_OFFSET), &new.node)
            new.offset = self.size
            self.size += size
        return 0

    def table(self, uint64_t begin):
        """Returns the program headers, for a file whose memory begins at `begin`."""
        cdef bytes table = PyBytes_FromStringAndSize(NULL, HEADER_SIZE * len(self))
        cdef char *out = PyBytes_AS_STRING(table)
        cdef uint64_t words[HEADER_WORDS]
        cdef const segment_part *part = self.head
        cdef const segment *at
        cdef size_t i
        words[6] = endian_le64(ALIGNMENT)
        while part is not NULL:
            for i in range(part.count):
                at = &part.all[i]
                words[0] = endian_le64(PT_LOAD | <uint64_t>at.flags << 32)
                words[1] = endian_le64(begin + at.offset)
                words[2] = words[3] = endian_le64(at.gpa)
                words[4] = endian_le64(0 if at.zeros else at.size)
                words[5] = endian_le64(at.size)
                memcpy(out, words, HEADER_SIZE)
                out += HEADER_SIZE
            part = part.next
        return table

    # From a file

    def take(self, bytes table not None, uint64_t length):
        """Adds the segments in `table`, the program headers of a file of `length` bytes.

        ValueError: one of the headers is wrong.
        """
        cdef const char *headers = PyBytes_AS_STRING(table)
        cdef uint32_t spaces = len(self.window.spaces)
        cdef uint64_t words[HEADER_WORDS]
        cdef segment found
        cdef Py_ssize_t i
        cdef int n
        found.hva = 0  # which no file tells
        for i in range(len(table) // HEADER_SIZE):
            memcpy(words, headers + HEADER_SIZE * i, HEADER_SIZE)
            for n in range(HEADER_WORDS):
                words[n] = endian_le64(words[n])
            if <uint32_t>words[0] != PT_LOAD or words[5] == 0:
                continue
            found.flags = words[0] >> 32
            found.offset = words[1]
            found.gpa = words[3]
            found.size = words[5]
            if words[4] > found.size:
                raise ValueError(
                    f"gpa {found.gpa:#x}: {words[4]:#x} bytes exceed the size {found.size:#x}"
                )
            if words[4] and (found.offset > length or words[4] > length - found.offset):
                raise ValueError(
                    f"cut off: gpa {found.gpa:#x} ends at {int(found.offset) + words[4]}, of"
                    f" {length} bytes"
                )
            if found.gpa + found.size - 1 < found.gpa:
                raise ValueError(
                    f"{found.size:#x} bytes from gpa {found.gpa:#x} go beyond the last guest"
                    " address"
                )
            if space_of(&found) >= spaces:
                raise ValueError(
                    f"gpa {found.gpa:#x} is of address space {space_of(&found)}; there are {spaces}"
                )
            self.size += found.size
            if words[4]:
                self.append_part(&found, 0, words[4]).offset = found.offset
            # Memory that the file has no bytes for is zeros.
            if words[4] < found.size:
                self.append_part(&found, words[4], found.size - words[4]).zeros = 1

    def refuse_overlaps(self):
        """Raises ValueError if two segments have different bytes for the same memory.

        The core of a process is such a file: all its segments are at guest address 0. O(s log s)
        for s segments.
        """
        cdef size_t count = len(self)
        cdef const segment **sorted
        cdef const segment_part *part = self.head
        cdef const segment *last  # the segment so far that ends last
        cdef const segment *at
        cdef size_t i
        cdef size_t n = 0
        if count < 2:
            return
        sorted = <const segment **>alloc_zeroed(count * sizeof(segment *))
        if sorted is NULL:
            raise MemoryError(f"no memory to sort {count} segments")
        try:
            while part is not NULL:
                for i in range(part.count):
                    sorted[n] = &part.all[i]
                    n += 1
                part = part.next
            with nogil:
                qsort(sorted, count, sizeof(segment *), order)
            last = sorted[0]
            for i in range(1, count):
                at = sorted[i]
                # Several segments may have the same bytes of the file.
                if (
                    space_of(at) == space_of(last)
                    and at.gpa - last.gpa < last.size
                    and not (at.zeros and last.zeros)
                    and (
                        at.zeros != last.zeros
                        or at.offset - last.offset != at.gpa - last.gpa
                    )
                ):
                    raise ValueError(
                        f"the segments at gpa {last.gpa:#x} and {at.gpa:#x} overlap and have"
                        " different bytes: is it a process's own core?"
                    )
                if space_of(at) != space_of(last) or (
                    last.gpa + (last.size - 1) < at.gpa + (at.size - 1)
                ):
                    last = at
        finally:
            alloc_free(sorted)

    def places(self, int fd, Py_ssize_t number, int zeros=-1):
        """Returns the memory that part `number` of the segments is to be read into: Batches.

        Memory that cannot be written, such as a firmware's, is left out: it must already have the
        bytes of the file `fd`. `zeros` is a file of zeros, for segments of zeros.

        NotMappedError; ReadOnlyError: such memory has other bytes; OSError.
        """
        cdef list batches = []
        cdef Batch batch = None
        cdef uint64_t upto = 0  # the file offset where the batch ends
        cdef const segment_part *part = self.head
        cdef const segment *at
        cdef uint64_t done, size
        cdef size_t i
        if not 0 <= number < self.parts:
            raise IndexError(f"there is no part {number}; there are {self.parts}")
        for _ in range(number):
            part = part.next
        if not self.window.restoring:
            self.window.restoring = True
            self.window.size = 0
        for i in range(part.count):
            at = &part.all[i]
            done = 0
            while done < at.size:
                size = self.window.reach(space_of(at), at.gpa + done, at.size - done)
                if self.window.refusal is not None:
                    self.window.compare(
                        at.gpa + done, size, zeros if at.zeros else fd, at.offset + done
                    )
                    done += size
                    continue
                if batch is None or upto != at.offset + done or batch.zeros != bool(at.zeros):
                    batch = Batch.__new__(Batch)
                    batch.zeros = bool(at.zeros)
                    batch.offset = at.offset + done
                    batch.home = self
                    batch.first = at
                    batches.append(batch)
                batch.views.append(self.window.part(at.gpa + done, size))
                batch.count = at + 1 - batch.first
                done += size
                upto = at.offset + done
        return batches

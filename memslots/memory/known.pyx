"""The known host memory of one machine: found by host address, kept while slots are on it."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from memslots.core.machine cimport machine
from memslots.core.slot cimport SLOT_LOG_DIRTY_PAGES, slot
from memslots.core.slotset cimport slotset_first_hva
from memslots.core.space cimport space_active
from memslots.memory.backing cimport Backing
from memslots.memslots cimport memslots_machine, memslots_writer
from memslots.read.sections cimport section, section_enter, section_leave
from memslots.write.writer cimport Writer

from memslots.values.records import Change

# Looked up once: access to an enum member may allocate memory, and every change runs this code.
cdef object DELETE = Change.DELETE


@cython.final
cdef class Backings:
    """Knows which host memory may be touched.

    It listens to the changes of its Memslots. After the last slot on a Backing is deleted, it
    forgets the Backing.
    """

    def __cinit__(self, vm):
        self.vm = vm
        self.all = ()
        self.subscription = vm.subscribe(self)

    def commit(self, change, old, new):
        """Forgets Backings that a DELETE leaves without slots. The Memslots calls it."""
        # In C: the & of an IntFlag is a Python function.
        cdef uint32_t before = 0 if old is None else old.flags
        cdef uint32_t after = 0 if new is None else new.flags
        self.ended_logs += before & ~after & SLOT_LOG_DIRTY_PAGES
        if change is not DELETE:
            return
        cdef hva_t hva = old.userspace_addr
        cdef uint64_t size = old.memory_size
        cdef tuple all = self.get()
        cdef Py_ssize_t n = begun_by(all, hva)
        cdef Backing backing
        if n > 0 and (<Backing>all[n - 1]).holds(hva, 1):
            n -= 1
        while n < len(all):
            backing = all[n]
            if not meet(backing.start(), backing.memory.len, hva, size):
                break
            self.drop_unused(backing)
            n += 1

    def __reduce__(self):
        raise TypeError("Backings cannot be pickled or copied: they are memory")

    cdef tuple get(self):
        with cython.critical_section(self):
            now = self.all
        return now

    cdef bint replace(self, tuple now, tuple then):
        cdef bint same
        with cython.critical_section(self):
            same = self.all is now
            if same:
                self.all = then
        return same

    cdef bint add(self, object backing) except -1:
        cdef Backing added = backing
        cdef Backing other
        cdef tuple now, then
        cdef Py_ssize_t n, near
        while True:
            now = self.get()
            n = begun_by(now, added.start())
            # Known Backings never overlap, so only the two neighbours can overlap this one.
            for near in range(max(n - 1, 0), min(n + 1, <Py_ssize_t>len(now))):
                other = now[near]
                if other is added:
                    return False
                if meet(other.start(), other.memory.len, added.start(), added.memory.len):
                    raise ValueError(f"{added} shares memory with {other}; place slots on that one")
            then = (*now[:n], added, *now[n:])
            if self.replace(now, then):
                return True

    cdef bint drop_unused(self, object backing) except -1:
        cdef tuple now, then
        cdef bint dropped = False
        while not dropped:
            if self.is_used(backing):
                return False
            now = self.get()
            then = tuple([one for one in now if one is not backing])
            # Check and drop in one critical section. `place` creates a slot and then makes its
            # memory known: so the memory stays known.
            with cython.critical_section(self):
                dropped = self.all is now and not self.is_used(backing)
                if dropped:
                    self.all = then
        # Another thread may have created a slot on it meanwhile. Then it must be known again.
        if self.is_used(backing):
            self.add(backing)
            return False
        return True

    cdef bint is_used(self, object backing) except -1:
        cdef Backing memory = backing
        cdef machine *m = memslots_machine(self.vm)
        cdef hva_t last = memory.start() + memory.memory.len - 1
        cdef section at = section_enter(m, NULL)
        cdef slot *s = NULL
        cdef uint32_t as_id
        for as_id in range(m.lim.nspaces):
            s = slotset_first_hva(space_active(m.spaces[as_id]), memory.start(), last)
            if s is not NULL:
                break
        section_leave(&at)
        return s is not NULL


cdef Backings backings_of(object vm):
    cdef Writer writer = memslots_writer(vm)
    cdef Backings found = writer.subscriptions.first_of(Backings)
    cdef Backings made
    if found is None:
        made = Backings(vm)
        found = writer.subscriptions.first_of(Backings)
        if found is not made:  # another thread was first
            made.subscription.close()
    return found


cdef inline bint meet(hva_t a, uint64_t a_size, hva_t b, uint64_t b_size) noexcept:
    """Returns whether two runs of host memory have a byte in common."""
    return a - b < b_size or b - a < a_size


cdef Py_ssize_t begun_by(tuple all, hva_t hva) noexcept:
    """Returns how many Backings of `all` begin at or below a host address."""
    cdef Py_ssize_t low = 0
    cdef Py_ssize_t high = len(all)
    cdef Py_ssize_t middle
    while low < high:  # those before `low` begin at or below hva, those from `high` on above it
        middle = (low + high) // 2
        if (<Backing>all[middle]).start() <= hva:
            low = middle + 1
        else:
            high = middle
    return low


cdef void *backing_at(tuple all, hva_t hva) noexcept:
    cdef Py_ssize_t n = begun_by(all, hva)
    if n == 0 or not (<Backing>all[n - 1]).holds(hva, 1):
        return NULL
    return <void *>all[n - 1]

"""The ids that no slot has. The contract of each method is in freeids.pxd."""

cimport cython

from memslots.core.slotset cimport slotset_by_id

# Imported when it is first needed: few programs ask for a free id. One name, not one for each
# function: no thread can see one of them set and another not.
cdef object heapq


@cython.final
@cython.auto_pickle(False)
cdef class FreeIds:
    """The free ids of one address space, kept from the first request for one on.

    Ids below `beyond` that are not in use are in a heap. An id enters the heap when its slot is
    deleted. It stays there when a new slot gets the id; `lowest` removes it when it reaches the
    top. So the creation of a slot costs nothing, and each entry is removed once.
    """

    def __cinit__(self):
        global heapq
        if heapq is None:
            import heapq
        self.given_back = []
        self.known = set()

    cdef uint32_t lowest(self, const slotset *set) except? 0xFFFFFFFF:
        cdef uint32_t id
        while self.given_back:
            id = self.given_back[0]
            if slotset_by_id(set, id) is NULL:
                return id
            self.take(id)
        while slotset_by_id(set, self.beyond) is not NULL:
            self.beyond += 1
        return self.beyond

    cdef int take(self, uint32_t id) except -1:
        if id < self.beyond:
            heapq.heappop(self.given_back)
            self.known.discard(id)
        else:
            self.beyond = id + 1
        return 0

    cdef int give_back(self, uint32_t id) except -1:
        if id < self.beyond and id not in self.known:
            self.known.add(id)
            try:
                heapq.heappush(self.given_back, id)
            except BaseException:
                self.known.discard(id)
                raise
        return 0

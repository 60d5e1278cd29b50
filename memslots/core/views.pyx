"""The rows of an index by id and by host address. The contracts are in views.pxd."""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint32_t
from libc.stdlib cimport qsort
from libc.string cimport memset

from memslots.core.alloc cimport alloc_block, alloc_free
from memslots.core.idtable cimport (
    idtable_add,
    idtable_clear,
    idtable_get_spare,
    idtable_init,
    idtable_spare,
)
from memslots.core.index cimport index, index_row, index_userspace_addr
from memslots.core.units cimport hva_t


cdef int compare_hva(const void *a, const void *b) noexcept nogil:
    cdef const index_row *x = (<const index_row **>a)[0]
    cdef const index_row *y = (<const index_row **>b)[0]
    cdef hva_t at_x = index_userspace_addr(x)
    cdef hva_t at_y = index_userspace_addr(y)
    if at_x != at_y:
        return 1 if at_x > at_y else -1
    return 1 if x.base_gfn > y.base_gfn else -1


cdef void views_free(views *v) noexcept nogil:
    if v is not NULL:
        idtable_clear(&v.ids)
        alloc_free(v.by_hva)
        alloc_free(v.reach)
        alloc_free(v)


cdef views *views_new(index *ix) noexcept nogil:
    cdef views *v = <views *>alloc_block(sizeof(views))
    cdef index_row shape  # only its layout is used
    cdef idtable_spare spare
    cdef uint32_t i
    cdef hva_t reach = 0
    if v is NULL:
        return NULL
    memset(v, 0, sizeof(views))
    idtable_init(&v.ids, <ptrdiff_t>(<char *>&shape.id - <char *>&shape))
    v.by_hva = <const index_row **>alloc_block(ix.count * sizeof(void *))
    v.reach = <hva_t *>alloc_block(ix.count * sizeof(hva_t))
    if (
        v.by_hva is NULL
        or v.reach is NULL
        or idtable_get_spare(&v.ids, ix.count, &spare) != 0
    ):
        views_free(v)
        return NULL
    for i in range(ix.count):
        idtable_add(&v.ids, &ix.rows[i], &spare)
        v.by_hva[i] = &ix.rows[i]
    qsort(v.by_hva, ix.count, sizeof(void *), compare_hva)
    for i in range(ix.count):
        reach = max(reach, views_last_hva(v.by_hva[i]))
        v.reach[i] = reach
    v.count = ix.count
    return v


cdef uint32_t views_first_reaching(const views *v, hva_t first) noexcept nogil:
    cdef uint32_t low = 0
    cdef uint32_t high = v.count
    cdef uint32_t middle
    while low < high:
        middle = low + (high - low) // 2
        if v.reach[middle] < first:
            low = middle + 1
        else:
            high = middle
    return low

# cython: preliminary_late_includes_cy28=True
# The directive puts the C code below after the declarations of the structs.
"""The layouts of the structs that outside code is compiled with, as one number (prefix: layout_).

Code built against another release's .pxd files would read members at wrong offsets. So two numbers
are compared when such code is imported. One is from the C compiler: in every module that cimports
this file it computes the number from all sizes and offsets. The other is the package's own, in
memslots.core.layout.
"""

from libc.stdint cimport uint64_t

# These declare all the structs, directly or through their own cimports.
from memslots.core.lookup cimport vcpu_cache
from memslots.core.machine cimport machine

cdef extern from *:
    """
    #include <stddef.h>
    static uint64_t memslots_layout_number(void) {
        uint64_t number = 0xcbf29ce484222325u;  /* FNV-1a over numbers, not bytes */
        #define LAYOUT_MIX(value) number = (number ^ (value)) * 0x100000001b3u;
        /* Cython's name for a struct of memslots.core. The list of its members follows. */
        #define LAYOUT_OF(name) \\
        } { typedef struct __pyx_t_8memslots_4core_##name current; LAYOUT_MIX(sizeof(current))
        #define AT(member) \\
        LAYOUT_MIX(offsetof(current, member)) LAYOUT_MIX(sizeof(((current *)0)->member))
        {
        LAYOUT_OF(6rbtree_rb_node) AT(child) AT(parent_and_color)
        LAYOUT_OF(6rbtree_rb_root) AT(node) AT(key_offset) AT(refresh)
        LAYOUT_OF(7hvatree_hva_node) AT(rb) AT(greatest)
        LAYOUT_OF(4pool_pool_chunk) AT(home) AT(next) AT(prev) AT(given_back) AT(fresh) AT(used)
        LAYOUT_OF(4pool_pool) AT(size) AT(roomy)
        LAYOUT_OF(7idtable_idtable) AT(places) AT(order) AT(count) AT(id_offset)
        LAYOUT_OF(7idtable_idtable_spare) AT(places) AT(order)
        LAYOUT_OF(6search_search_keys) AT(origin) AT(shift) AT(levels) AT(kind) AT(count)
            AT(level) AT(wide) AT(stray)
        LAYOUT_OF(5index_index_row) AT(base_gfn) AT(npages) AT(id) AT(hva) AT(record)
        LAYOUT_OF(5index_index) AT(rows) AT(keys) AT(slots) AT(room) AT(count) AT(references)
            AT(lines) AT(last_used) AT(last_line)
        LAYOUT_OF(4slot_slot) AT(gfn_node) AT(base_gfn) AT(npages) AT(hva_node)
            AT(userspace_addr) AT(last_hva) AT(id) AT(as_id) AT(flags)
            AT(guest_memfd) AT(guest_memfd_offset) AT(dirty) AT(record) AT(chunk)
        LAYOUT_OF(4slot_region) AT(id) AT(as_id) AT(flags) AT(base_gfn) AT(npages)
            AT(userspace_addr) AT(guest_memfd) AT(guest_memfd_offset)
        LAYOUT_OF(7slotset_slotset) AT(gfn_tree) AT(generation) AT(index) AT(k)
            AT(first_line) AT(last_used) AT(searches) AT(building) AT(unfinished) AT(next)
            AT(spare) AT(second_line) AT(hva_tree) AT(ids) AT(npages) AT(third_line)
        LAYOUT_OF(4srcu_srcu_reader) AT(inside) AT(domain) AT(next) AT(taken) AT(line)
        LAYOUT_OF(4srcu_srcu) AT(turn) AT(readers) AT(turn_line) AT(shared)
        LAYOUT_OF(5space_space) AT(sets) AT(active) AT(slots) AT(as_id) AT(nspaces)
            AT(has_memfds)
        LAYOUT_OF(6region_limits) AT(max_slots) AT(nspaces) AT(max_gfn) AT(max_hva)
            AT(manual_dirty_log)
        LAYOUT_OF(6region_ruling) AT(kind) AT(old) AT(existing) AT(before)
        LAYOUT_OF(7machine_machine) AT(readers) AT(lim) AT(spaces)
        LAYOUT_OF(6lookup_vcpu_cache) AT(last_used) AT(generation) AT(slot) AT(hits)
            AT(misses) AT(reader)
        }
        #undef LAYOUT_MIX
        #undef LAYOUT_OF
        #undef AT
        return number;
    }
    """
    # Computes the number as compiled into the calling module.
    uint64_t layout_number "memslots_layout_number"() noexcept nogil

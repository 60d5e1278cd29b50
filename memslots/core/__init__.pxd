"""The door of memslots.core: the names that other modules may use, by module.

Names that core's .pxd files declare and this list lacks are for core alone. tests/test_layers.py
checks every cimport against this list. The contract between core and its callers:

- No function needs the GIL, runs Python code, makes a Python object or raises. A slot may hold a
  pointer to a Python object (slot.record); core only stores it.
- If there is no memory, a function returns NULL or -1 and changes nothing. All that can fail in a
  change comes before its first step. All memory comes from core.alloc.
- A reader must be in a read-side section (core.srcu) or hold a lock that keeps writers out. A
  writer must hold the writer's lock. Core takes neither by itself. Arguments must be as the .pxd
  files say; only a debug build checks them.

Open to Cython code outside the package, which cimports them through memslots.memslots. The .pxd
files of these modules and of the modules that they need are installed; the others are not:

  units        gfn_t PAGE_SHIFT gpa_t hva_t PAGE_SIZE PAGE_OFFSET_MASK BAD_HVA LAST_GFN gpa_to_gfn
               page_aligned gfn_range_fits
  srcu         srcu_reader srcu_enter srcu_leave
  slot         SLOT_LOG_DIRTY_PAGES SLOT_READONLY SLOT_GUEST_MEMFD SLOT_INVALID slot region
               slot_region slot_end_gfn slot_has_gfn slot_usable slot_gfn_to_hva
  dirtylog     dirty_mark dirty_mark_range
  slotset      slotset slotset_count slotset_floor slotset_search slotset_by_id slotset_first
               slotset_last slotset_step slotset_first_from slotset_first_hva slotset_next_hva
  space        space space_active space_generation
  region       limits
  machine      MAX_SPACES machine
  lookup       vcpu_cache lookup_in lookup_gfn lookup_hva

For memslots alone:

  endian       endian_le64
  atomics      atomic_load_relaxed atomic_store_relaxed atomic_compare_exchange
               atomic_compare_exchange_ptr atomic_load_acquire_ptr
               atomic_fetch_add_acq_rel atomic_fetch_sub_acq_rel
  debug        debug_assert
  alloc        CACHE_LINE alloc_block alloc_zeroed alloc_lines alloc_free
  rbtree       rb_node rb_root rb_init rb_end rb_floor rb_insert_after rb_step
  idtable      idtable idtable_spare idtable_drop_spare idtable_fits idtable_get_spare idtable_find
  srcu         srcu_reader_get srcu_init srcu_reader_put srcu_shared srcu_depth srcu_wait srcu_alone
               srcu_idle srcu_forget
  slot         SLOT_CALLER_FLAGS SLOT_KNOWN_FLAGS slot_number slot_number_id slot_number_as_id
               slot_free
  dirtylog     dirty_words dirty_new dirty_free dirty_get dirty_put dirty_clear dirty_merge
  index        index index_row INDEX_ANY_ID INDEX_GUEST_MEMFD index_usable index_gfn_to_hva
               index_has_gfn index_userspace_addr index_flags index_row_of index_hold index_drop
  rows         rows rows_fault rows_pair ROWS_GOOD ROWS_NO_MEMORY ROWS_SAME_ID ROWS_TOO_MANY
               rows_add rows_cut rows_free rows_index rows_join rows_number rows_reserve
               rows_yield_ids
  views        views views_first_reaching views_free views_last_hva views_new
  slotset      slotset_init slotset_clash slotset_drop_index
  space        SWAPPING space_swap_end space_swap_begin space_inactive
  region       refusal ALLOWED UNKNOWN_FLAGS FLAGS_EXCLUDE SIZE_NOT_ALIGNED GPA_NOT_ALIGNED
               HVA_NOT_ALIGNED HVA_BEYOND_MAX NO_SUCH_SPACE ID_BEYOND_MAX GPA_WRAPS
               OFFSET_NOT_ALIGNED OFFSET_WRAPS NO_SUCH_SLOT TOO_MANY_PAGES ONLY_DELETED
               HVA_DIFFERS NPAGES_DIFFER READONLY_TOGGLES OVERLAPS BEYOND_MAX_GFN NO_PAGES ID_IN_USE
               NO_MEMORY change_kind CHANGE_NONE CHANGE_CREATE CHANGE_DELETE CHANGE_MOVE ruling
               region_from_bytes region_check region_classify region_place region_beyond_max_gfn
  machine      machine_new machine_free
  index_policy index_policy_current index_policy_pays
               index_policy_build index_policy_copy
  fill         fill fill_begin fill_carry fill_drop fill_end fill_get fill_leave fill_put fill_stage
               fill_unstage
  lookup       lookup_row lookup_shared
  search       search_one
  layout       layout_number
  lookup_batch lookup_kind LOOKUP_IDS TRANSLATE_READ TRANSLATE_WRITE MARK_DIRTY lookup_batch_tree
               lookup_batch_index
  update       change update_get update_invalidate_begin update_invalidate_end update_apply_begin
               update_apply_end update_revert_begin update_revert_end update_end update_init
               update_stage_get update_stage update_carry update_carry_marks update_unstage
               update_displaces update_abandon_get update_abandon_begin update_abandon_end
               update_abandon_drop update_discard update_must_invalidate update_leftover
  guarded      guarded_probe guarded_read guarded_write
  access       access span access_kind ACCESS_READ ACCESS_WRITE ACCESS_RESTORE ACCESS_ALL ACCESS_BAD
               access_result ACCESS_NO_MEMORY access_free access_init access_mark access_meets
               access_probe access_read access_write access_fill access_load access_store
               access_split
  invariants   property_id HOLDS S1 S2 S3 S4 D1 report invariants_check_space
"""

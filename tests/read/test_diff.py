"""Tests MapDiff, the differences between two maps, against dicts from page to host page."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
from hypothesis import given
from maps import maps, pages

from memslots import Change, Flags, GuestMemfd, MemoryMap, Slot

A, B = 0x7F0000000000, 0x7E0000000000


@given(maps(), maps())
def test_page_by_page(a: MemoryMap, b: MemoryMap) -> None:
    mine, theirs = pages(a), pages(b)
    diff = a.diff(b)
    went = [gfn for start, end in diff.went for gfn in range(start, end)]
    came = [gfn for start, end in diff.came for gfn in range(start, end)]
    assert went == sorted(mine.keys() - theirs.keys())
    assert came == sorted(theirs.keys() - mine.keys())
    assert all(one[1] < two[0] for one, two in pairwise(diff.went))
    both = sorted(mine.keys() & theirs.keys())
    memory = {
        gfn: (old + (gfn - start << 12), new + (gfn - start << 12))
        for start, end, old, new in diff.memory
        for gfn in range(start, end)
    }
    assert memory == {g: (mine[g][0], theirs[g][0]) for g in both if mine[g][0] != theirs[g][0]}
    flags = {g: (old, new) for s, e, old, new in diff.flags for g in range(s, e)}
    assert flags == {g: (mine[g][1], theirs[g][1]) for g in both if mine[g][1] != theirs[g][1]}


@given(maps(), maps())
def test_slot_by_slot(a: MemoryMap, b: MemoryMap) -> None:
    diff = a.diff(b)
    slots = {fields(slot) for slot in a}
    for change, old, new in diff.slots:
        if old is not None:
            slots.remove(fields(old))
        if old is not None and new is not None:
            assert (old.userspace_addr, old.npages) == (new.userspace_addr, new.npages)
            assert (old.base_gfn == new.base_gfn) == (change is Change.FLAGS_ONLY)
        else:
            assert change is (Change.CREATE if old is None else Change.DELETE)
    slots |= {fields(each.after) for each in diff.slots if each.after is not None}
    assert slots == {fields(slot) for slot in b}
    assert bool(diff) == (slots != {fields(slot) for slot in a})
    assert not a.diff(a) and str(a.diff(a)) == "no difference"
    # In the other direction, the same with signs changed.
    back = b.diff(a)
    assert (back.came, back.went) == (diff.went, diff.came)
    assert len(str(back).splitlines()) == len(str(diff).splitlines())


def fields(slot: Slot) -> tuple[int, int, int, int]:
    return slot.base_gfn, slot.npages, slot.userspace_addr, int(slot.flags)


def test_it_prints_like_a_diff() -> None:
    a = MemoryMap([(0, 160, A), (0xC0, 32, A + (9 << 20), 2), (0x100, 256, A + (1 << 20))])
    b = MemoryMap([(0, 160, A, 1), (0xD0, 32, A + (9 << 20), 2), (0x100, 256, B)])
    diff = a.diff(b)
    assert str(diff) == (
        """\
   space  id       gpa       end     size             hva  flags
-      0   0       0x0   0xa0000  640 KiB  0x7f0000000000  -
+      0   0       0x0   0xa0000  640 KiB  0x7f0000000000  LOG_DIRTY_PAGES
-      0   1   0xc0000   0xe0000  128 KiB  0x7f0000900000  READONLY
+      0   1   0xd0000   0xf0000  128 KiB  0x7f0000900000  READONLY
-      0   2  0x100000  0x200000    1 MiB  0x7f0000100000  -
+      0   2  0x100000  0x200000    1 MiB  0x7e0000000000  -
- gpa [0xc0000, 0xd0000), 64 KiB: went
+ gpa [0xe0000, 0xf0000), 64 KiB: came
! gpa [0xd0000, 0xe0000), 64 KiB: hva 0x7f0000910000 is now 0x7f0000900000
! gpa [0x100000, 0x200000), 1 MiB: hva 0x7f0000100000 is now 0x7e0000000000
! gpa [0x0, 0xa0000), 640 KiB: flags - are now LOG_DIRTY_PAGES"""
    )
    assert diff.flags[0].after is Flags.LOG_DIRTY_PAGES
    assert [each.change.name for each in diff.slots] == ["FLAGS_ONLY", "MOVE", "DELETE", "CREATE"]


def test_only_with_a_map() -> None:
    with pytest.raises(TypeError, match="takes a MemoryMap, not 'list'"):
        MemoryMap().diff([])  # type: ignore[arg-type]


def test_only_of_one_address_space() -> None:
    with pytest.raises(ValueError, match="address spaces 0 and 1 cannot be compared"):
        MemoryMap([(0, 1, A)]).diff(MemoryMap([(0, 1, A)], 1))


def test_other_ranges_of_guest_memfds() -> None:
    """A slot on another file, or elsewhere in it, went and came: rule G5 knows no other change."""
    one, two = GuestMemfd(0x10000), GuestMemfd(0x10000)
    maps = [
        MemoryMap([Slot(0, 0, 0, 4, 0, 4, memfd, offset), (9, 1, A)])
        for memfd, offset in ((one, 0), (two, 0), (one, 0x4000))
    ]
    for a, b in permutations(maps, 2):
        diff = a.diff(b)
        assert diff
        assert [each.change for each in diff.slots] == [Change.DELETE, Change.CREATE]
        assert (diff.slots[0].before, diff.slots[1].after) == (a[0], b[0])
    assert not maps[0].diff(maps[0])

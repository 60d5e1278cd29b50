"""Tests the index of a set: when it is made, which look-ups use it, and when it goes."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model import pages_of

from memslots import BAD_HVA, Backing, Flags, GuestMemory, Memslots, ReadOnlyError

pytestmark = pytest.mark.usefixtures("no_garbage")

PAGES = 8
STEP = 10  # from one slot's first page to the next slot's: a hole of two pages after each
MARK = 1 << 20
END = (1 << 64) - 1
KINDS = ("portable", "avx2", "avx512")


def make(slots: int, origin: int = 0, **limits: int) -> Memslots:
    vm = Memslots(max_slots=max(slots, 1) + 1, **limits)
    for id in range(slots):
        vm.create(id, origin + id * STEP, PAGES, id << 20, Flags.READONLY if id % 3 == 2 else 0)
    return vm


def indexed(drivers: Any, vm: Memslots, gfns: array[int]) -> str:
    """Makes batches until there is an index. Returns what searches it."""
    for _ in range(1000):
        vm.lookup_many(gfns)
        kind = drivers("index").current(vm)
        if kind is not None:
            return str(kind)
    raise AssertionError("no index was made")


def answer(vm: Memslots, gfn: int) -> int:
    """Returns the answer of a walk, which uses no cache and no index."""
    found = vm.in_gfn_range(gfn, gfn + 1)
    return found[0].id if found else -1


def scattered(slots: int, count: int, seed: int = 1) -> array[int]:
    dice = random.Random(seed)
    return array("Q", [dice.randrange(slots * STEP) for _ in range(count)])


def local(slots: int, count: int, seed: int = 1) -> array[int]:
    dice = random.Random(seed)
    gfns = [
        begin * STEP + dice.randrange(STEP if dice.random() < 0.1 else PAGES)
        for begin in (dice.randrange(slots) for _ in range(count // 40 + 1))
        for _ in range(40)
    ]
    return array("Q", gfns[:count])


def expect(vm: Memslots, face: Any, gfns: array[int]) -> None:
    """Compares every question that a batch can answer with a walk for each element."""
    ids = [answer(vm, gfn) if gfn < 1 << 63 else -1 for gfn in gfns]
    assert list(face.lookup_many(gfns)) == ids
    gpas = array("Q", [(gfn << 12 | gfn & 0xFFF) & (1 << 64) - 1 for gfn in gfns])
    hvas = face.translate(gpas)
    stores = face.translate(gpas, write=True)
    for gfn, gpa, hva, store in zip(gfns, gpas, hvas, stores, strict=True):
        slot = vm.in_gfn_range(gpa >> 12, (gpa >> 12) + 1)
        there = slot[0].gfn_to_hva(gpa >> 12) + (gfn & 0xFFF) if slot else BAD_HVA
        assert hva == there
        assert store == (BAD_HVA if slot and slot[0].flags & Flags.READONLY else there)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, drivers: Any) -> Any:
    driver = drivers("search")
    try:
        if not driver.use(request.param):
            pytest.skip(f"this processor has no {request.param}")
        yield request.param
    finally:
        driver.use(driver.best())


@pytest.mark.parametrize("slots", [1, 2, 10, 16, 17, 300])
@pytest.mark.parametrize("origin", [0, 1000])
@pytest.mark.parametrize("shape", [scattered, local])
def test_answers(kind: str, drivers: Any, slots: int, origin: int, shape: Any) -> None:
    vm = make(slots, origin)
    gfns = array("Q", [gfn + origin for gfn in shape(slots, 1500)])
    end = origin + slots * STEP
    edges = [0, max(origin, 1) - 1, origin, end, 1 << 51, (1 << 52) - 1, (1 << 64) - 1]
    gfns.extend(array("Q", edges * 3))
    assert indexed(drivers, vm, gfns) == kind
    for face in (vm, vm.vcpu()):
        expect(vm, face, gfns)
        vm.check()
    # in place
    gpas = array("Q", [gfn << 12 & (1 << 64) - 1 for gfn in gfns])
    wanted = vm.translate(gpas)
    assert vm.translate(gpas, out=gpas) is gpas
    assert gpas == wanted


def test_gfns_that_lie_far_apart(drivers: Any) -> None:
    vm = Memslots(max_gfn=(1 << 52) - 2)
    bases = [0, 3, (1 << 32) + 7, 1 << 40, (1 << 52) - 11]
    for id, base in enumerate(bases):
        vm.create(id, base, 2, id << 20)
    gfns = array("Q", [base + step for base in bases for step in range(-1, 4) if base + step >= 0])
    assert indexed(drivers, vm, gfns) == "wide"
    expect(vm, vm, gfns)
    vm.check()


def test_batches_ask_the_index(drivers: Any) -> None:
    index = drivers("index")
    vm = make(300)
    vm.lookup_many(scattered(300, 2000))
    assert index.current(vm)
    index.mark_ids(vm, MARK)
    for face in (vm, vm.vcpu(), vm.address_space(0)):
        for gfns in (scattered(300, 500, 2), local(300, 500, 3), array("Q", [5]), array("Q", [9])):
            ids = face.lookup_many(gfns)
            assert list(ids) == [-1 if gfn % STEP >= PAGES else gfn // STEP + MARK for gfn in gfns]
        assert face.in_gfn_range(25, 26)[0].id == 2
    index.mark_ids(vm, -MARK)
    vm.check()


def test_batches_mark_no_hole(drivers: Any) -> None:
    vm = Memslots()
    for id in range(300):
        vm.create(id, 64 * id, PAGES, id << 20, Flags.LOG_DIRTY_PAGES)
    gfns = array("Q", [64 * (gfn // STEP) + gfn % STEP for gfn in scattered(300, 3000)])
    indexed(drivers, vm, gfns)
    vm.mark_dirty_many(gfns)
    vm.check()  # no bit past a slot's last page
    for id in range(300):
        marks = {gfn - 64 * id for gfn in gfns if gfn // 64 == id} & set(range(PAGES))
        assert pages_of(vm.get_dirty_log(id)) == marks


def test_single_look_ups_ask_the_index(drivers: Any) -> None:
    index = drivers("index")
    vm = make(300)
    indexed(drivers, vm, scattered(300, 2000))
    index.rotate(vm)  # the index now answers with the next slot, so its answers are recognised
    for face in (vm, vm.vcpu(), vm.address_space(0)):
        assert face.lookup(25) is vm[3]
        assert face.lookup(26) is vm[3]  # the last-used slot
        assert face.lookup(STEP + PAGES) is None
        assert face.lookup(300 * STEP) is None
        assert face.gpa_to_hva(55 << 12) == (6 << 20) + (5 << 12)
        assert face.gpa_to_hva(56 << 12) == (6 << 20) + (6 << 12)


SINGLE: dict[str, Callable[[Memslots], Callable[[int], object]]] = {
    "Memslots.lookup": lambda vm: vm.lookup,
    "Memslots.mark_dirty": lambda vm: vm.mark_dirty,
    "Memslots.gpa_to_hva": lambda vm: lambda gfn: vm.gpa_to_hva(gfn << 12),
    "AddressSpace.lookup": lambda vm: vm.address_space(0).lookup,
    "Vcpu.lookup": lambda vm: vm.vcpu().lookup,
    "Vcpu.gpa_to_hva": lambda vm: (lambda vcpu: lambda gfn: vcpu.gpa_to_hva(gfn << 12))(vm.vcpu()),
}


@pytest.fixture(params=list(SINGLE))
def single(request: pytest.FixtureRequest) -> Callable[[Memslots], Callable[[int], object]]:
    return SINGLE[request.param]


def pages(slots: int, seed: int = 1) -> Iterator[int]:
    """Returns pages that slots hold, each in another slot than the page before."""
    dice = random.Random(seed)
    before = None
    while True:
        slot = dice.randrange(slots)
        if slot != before or slots == 1:
            yield slot * STEP + dice.randrange(PAGES)
        before = slot


def test_single_look_ups_make_it_a_part_at_a_time(drivers: Any, single: Any) -> None:
    index = drivers("index")
    vm = make(300)
    look_up = single(vm)
    made = 0
    for n, gfn in enumerate(pages(300)):
        look_up(gfn)
        if index.current(vm) is not None:
            break
        rows = index.rows_made(vm) or 0
        assert made <= rows <= made + index.PART
        assert rows == 0 or n + 1 >= index.pays(300)
        made = rows
    assert index.pays(300) <= n + 1 <= index.pays(300) + 300
    vm.check()
    # From now on no look-up searches the tree.
    searches = index.searches(vm)
    for gfn, _ in zip(pages(300, 2), range(500), strict=False):
        look_up(gfn)
    assert index.searches(vm) == searches


def test_each_miss_of_a_vcpu_goes_on_with_what_is_begun(drivers: Any) -> None:
    index = drivers("index")
    vm = make(300)
    vcpu = vm.vcpu()
    source = pages(300)
    while index.rows_made(vm) is None:
        vcpu.lookup(next(source))
    while (made := index.rows_made(vm)) is not None:
        vcpu.lookup(next(source))
        assert (index.rows_made(vm) or 300) == min(made + index.PART, 300)
    assert index.current(vm)


def test_accesses_to_guest_memory_make_and_ask_it(drivers: Any) -> None:
    index = drivers("index")
    slots = 100
    mem = GuestMemory(Memslots())
    backing = Backing.anonymous(slots << 12)
    for id in range(slots):
        mem.place(id, id << 12, backing, id << 12, 1 << 12)
        mem.write_u32(id << 12, id)
    dice = random.Random(1)
    for _ in range(3 * slots + index.pays(slots)):
        id = dice.randrange(slots)
        assert mem.read_u32(id << 12) == id
    assert index.current(mem.vm)
    index.rotate(mem.vm)  # the index now answers with the next slot
    searches = index.searches(mem.vm)
    for id in dice.sample(range(slots - 1), 50):
        assert mem.read_u32(id << 12) == id + 1
    assert index.searches(mem.vm) == searches


def test_a_page_in_a_hole_was_searched_for_too(drivers: Any) -> None:
    index = drivers("index")
    vm = make(300)
    for _ in range(2000):
        assert vm.lookup(STEP - 1) is None
    assert index.current(vm)


def test_look_ups_that_hit_make_none(drivers: Any, single: Any) -> None:
    vm = make(300)
    look_up = single(vm)
    for _ in range(3000):
        look_up(5)
    assert not drivers("index").is_kept(vm)


def test_a_change_throws_away_what_is_made(drivers: Any, single: Any) -> None:
    index = drivers("index")
    vm = make(300)
    look_up = single(vm)
    source = pages(300)
    for _ in range(3):
        while index.rows_made(vm) is None:
            look_up(next(source))
        vm.set_flags(0, Flags.LOG_DIRTY_PAGES)
        assert not index.is_kept(vm)
        vm.check()
        vm.set_flags(0, 0)
    while index.current(vm) is None:
        look_up(next(source))
    vm.check()


def test_while_another_thread_makes_it_all_go_on(drivers: Any, single: Any) -> None:
    index = drivers("index")
    vm = make(300)
    look_up = single(vm)
    index.hold_building(vm, True)
    for gfn, _ in zip(pages(300), range(3000), strict=False):
        look_up(gfn)
        assert not index.is_kept(vm)
    assert list(vm.lookup_many(scattered(300, 2000))) == [
        answer(vm, gfn) for gfn in scattered(300, 2000)
    ]
    assert not index.is_kept(vm)
    # A thread that a fork left behind never finishes. The next change ends its index.
    vm.set_flags(0, Flags.LOG_DIRTY_PAGES)
    for gfn, _ in zip(pages(300), range(3000), strict=False):
        look_up(gfn)
    assert index.current(vm)


def test_a_map_waits_for_no_other_thread_that_makes_it(drivers: Any) -> None:
    index, alloc = drivers("index"), drivers("alloc")
    vm = make(300)
    index.hold_building(vm, True)
    assert list(vm.map()) == list(vm)
    live = alloc.live()
    alloc.fail_nth(1)
    try:
        with pytest.raises(MemoryError, match="no memory for a MemoryMap"):
            vm.map()
    finally:
        alloc.fail_nth(0)
    assert alloc.live() == live
    index.hold_building(vm, False)


def test_a_batch_goes_on_with_what_single_look_ups_made(drivers: Any) -> None:
    index = drivers("index")
    vm = make(2000)
    source = pages(2000)
    while index.rows_made(vm) is None:
        vm.lookup(next(source))
    asked = drivers("alloc").asked()
    vm.lookup_many(scattered(2000, 3000))
    assert index.current(vm) and drivers("alloc").asked() == asked
    vm.check()


def test_of_few_slots_it_is_made_at_once(drivers: Any, single: Any) -> None:
    index = drivers("index")
    alloc = drivers("alloc")
    vm = make(index.FEW)
    look_up = single(vm)
    source = pages(index.FEW)
    for begun in range(6):
        asked = alloc.asked()
        while index.current(vm) is None:
            assert index.rows_made(vm) is None
            look_up(next(source))
        # From the second time on, each set has memory to reuse.
        assert alloc.asked() == asked + (begun < 2)
        vm.check()
        vm.set_flags(1, Flags.LOG_DIRTY_PAGES if begun % 2 == 0 else 0)


def test_no_memory_for_single_look_ups(drivers: Any, single: Any) -> None:
    index = drivers("index")
    alloc = drivers("alloc")
    vm = make(300)
    look_up = single(vm)
    source = pages(300)
    live = alloc.live()
    for _ in range(index.pays(300) - 16):
        look_up(next(source))
    alloc.fail_nth(1)
    try:
        while not index.searches(vm) < 16:
            look_up(next(source))
    finally:
        alloc.fail_nth(0)
    assert not index.is_kept(vm) and alloc.live() == live
    # It is tried again after as many new searches.
    while index.current(vm) is None:
        look_up(next(source))
    vm.check()


@pytest.mark.parametrize("slots", [1, 2, 15, 16, 17, 100])
@pytest.mark.parametrize("origin", [0, 1000])
def test_single_answers(kind: str, drivers: Any, slots: int, origin: int) -> None:
    """Tests every reader with and without the index, in slots and in holes."""
    vm = make(slots, origin)
    gfns = [*range(max(origin, 3) - 3, origin + slots * STEP + 3), 1 << 40, (1 << 64) - 1]
    random.Random(slots).shuffle(gfns)
    wanted = {gfn: next(iter(vm.in_gfn_range(gfn, min(gfn + 1, END))), None) for gfn in gfns}
    vcpu, space = vm.vcpu(), vm.address_space(0)
    for _ in range(20):
        for gfn in gfns:
            slot = wanted[gfn]
            assert vm.lookup(gfn) is slot and vcpu.lookup(gfn) is slot and space.lookup(gfn) is slot
            if slot is None or gfn >= 1 << 52:
                continue
            for face in (vm, vcpu):
                assert face.gpa_to_hva(gfn << 12 | 5) == slot.gfn_to_hva(gfn) + 5
                if slot.flags & Flags.READONLY:
                    with pytest.raises(ReadOnlyError):
                        face.gpa_to_hva(gfn << 12, write=True)
                else:
                    assert face.gpa_to_hva(gfn << 12, write=True) == slot.gfn_to_hva(gfn)
    assert drivers("index").current(vm) == kind
    vm.check()


def test_a_vcpu_counts_what_was_near(drivers: Any) -> None:
    vm = make(300)
    vm.lookup_many(scattered(300, 2000))
    assert drivers("index").current(vm)
    near, far = vm.vcpu(), vm.vcpu()
    near.lookup_many(array("Q", [5, 6, 7, 0] * 250))
    assert near.stats == (1000, 0) or near.stats == (999, 1)
    gfns = scattered(300, 1000, 5)
    far.lookup_many(gfns)
    assert sum(far.stats) == 1000
    assert far.stats.misses > 900
    # The batch's last answer is the next single look-up's last-used.
    hits = near.stats.hits
    assert near.lookup(3) is vm[0]
    assert near.stats.hits == hits + 1


def test_every_number_is_searched_for_where_half_would_be(drivers: Any) -> None:
    vm = make(300)
    indexed(drivers, vm, scattered(300, 2000))
    vcpu = vm.vcpu()
    vcpu.lookup_many(array("Q", [slot * STEP + page for slot in range(300) for page in (0, 1)]))
    assert sum(vcpu.stats) == 600
    assert vcpu.stats.misses > 550


def test_few_slots_by_turns_take_few_searches(drivers: Any) -> None:
    vm = make(300)
    indexed(drivers, vm, scattered(300, 2000))
    vcpu = vm.vcpu()
    turns = array("Q", [slot * STEP for slot in (7, 100, 30)] * 300)
    ids = vcpu.lookup_many(turns)
    assert list(ids) == [gfn // STEP for gfn in turns]
    assert sum(vcpu.stats) == 900
    assert vcpu.stats.misses < 20


def test_it_is_made_when_it_pays(drivers: Any) -> None:
    index = drivers("index")
    vm = make(2000)
    assert list(vm.lookup_many(scattered(2000, 20))) and not index.is_kept(vm)
    for _ in range(20):
        vm.lookup_many(array("Q", [5] * 1000))  # the tree is searched once
    assert not index.is_kept(vm)
    # The searches of small batches add up.
    batches = 0
    while index.current(vm) is None:
        vm.lookup_many(scattered(2000, 20, batches))
        batches += 1
        assert batches < 100
    assert batches > 5
    # A large batch makes an index at once.
    vm.delete(0)
    assert index.current(vm) is None
    vcpu = vm.vcpu()
    vcpu.lookup_many(scattered(2000, 5000))
    assert index.current(vm)


def test_dirty_marks_by_the_index(drivers: Any) -> None:
    vm = Memslots()
    for id in range(50):
        vm.create(id, id * 100, 80, id << 20, Flags.LOG_DIRTY_PAGES if id % 2 else 0)
    for shape in (scattered, local):
        gfns = array("Q", [gfn % 5000 for gfn in shape(500, 3000)])
        vm.mark_dirty_many(gfns)
        assert drivers("index").current(vm)
        marked = {gfn for gfn in gfns if gfn // 100 % 2 and gfn % 100 < 80}
        got = set()
        for id in range(1, 50, 2):
            log = int.from_bytes(vm.get_dirty_log(id), "little")
            got |= {id * 100 + page for page in range(80) if log >> page & 1}
        assert got == marked


def test_a_change_drops_it(drivers: Any) -> None:
    index = drivers("index")
    vm = make(40)
    gfns = scattered(45, 1000)
    changes: list[Callable[[], object]] = [
        lambda: vm.create(40, 400, PAGES, 40 << 20),
        lambda: vm.move(40, 420),
        lambda: vm.set_flags(40, Flags.LOG_DIRTY_PAGES),
        lambda: vm.delete(40),
    ]
    for change in changes:
        indexed(drivers, vm, gfns)
        change()
        assert not index.is_kept(vm)
        expect(vm, vm, gfns)
        vm.check()
    with vm.transaction() as tx:
        vm.lookup_many(gfns)
        tx.delete(3)
        assert index.current(vm)  # readers do not see the change yet
        assert list(vm.lookup_many(gfns)) == [answer(vm, gfn) for gfn in gfns]
    assert not index.is_kept(vm)
    expect(vm, vm, gfns)
    vm.check()


def test_a_change_elsewhere_leaves_it(drivers: Any) -> None:
    index = drivers("index")
    vm = make(40, address_spaces=2)
    vm.create(1, 0, 5, 0, as_id=1)
    vm.lookup_many(scattered(40, 1000))
    vm.delete(1, as_id=1)
    assert index.current(vm)
    vm.check()


def test_listeners_batches_see_invalid(drivers: Any) -> None:
    """While a slot is about to go, the index of that moment marks it INVALID."""
    vm = make(40)
    seen = []

    class Listener:
        def prepare(self, change: Any, old: Any, new: Any) -> None:
            gfns = array("Q", range(400))
            indexed(drivers, vm, gfns)
            hvas = vm.translate(array("Q", [gfn << 12 for gfn in gfns]))
            seen.append((hvas[25], hvas[35] != BAD_HVA))
            raise ValueError("no")

    with vm.subscribe(Listener()), pytest.raises(ValueError, match="no"):
        vm.delete(2)
    assert seen == [(BAD_HVA, True)]
    expect(vm, vm, scattered(40, 1000))
    vm.check()


def test_no_slots_no_index(drivers: Any) -> None:
    vm = Memslots()
    assert set(vm.lookup_many(array("Q", range(10_000)))) == {-1}
    assert not drivers("index").is_kept(vm)


@settings(max_examples=60)
@given(st.data())
def test_random_slots_and_batches(drivers: Any, data: st.DataObject) -> None:
    vm = Memslots(max_slots=500)
    gfn = data.draw(st.integers(0, 1 << 34))
    first = gfn
    for id in range(data.draw(st.integers(1, 60))):
        gfn += data.draw(st.sampled_from([0, 0, 1, 5, 1 << 20]))
        npages = data.draw(st.integers(1, 40))
        vm.create(id, gfn, npages, id << 30, data.draw(st.sampled_from([0, Flags.READONLY])))
        gfn += npages
    inside = st.integers(max(0, first - 3), gfn + 3)
    some = data.draw(st.lists(st.one_of(inside, inside, st.integers(0, (1 << 64) - 1)), min_size=1))
    repeats = data.draw(st.integers(1, 70))
    gfns = array("Q", [gfn for gfn in some for _ in range(repeats)])
    indexed(drivers, vm, gfns)
    expect(vm, vm.vcpu(), gfns)
    vm.check()


def test_no_memory_for_it(drivers: Any) -> None:
    """Then the tree answers, and nothing is lost."""
    alloc = drivers("alloc")
    gfns = scattered(300, 3000)
    for nth in range(1, 10):
        vm = make(300)
        wanted = [answer(vm, gfn) for gfn in gfns]
        live, asked = alloc.live(), alloc.asked()
        alloc.fail_nth(nth)
        try:
            assert list(vm.lookup_many(gfns)) == wanted
        finally:
            alloc.fail_nth(0)
        vm.check()
        made = drivers("index").current(vm) is not None
        if made and alloc.asked() - asked < nth:
            break
        # Memory of an index that was not made is freed.
        assert made or alloc.live() == live
        assert list(vm.lookup_many(gfns)) == wanted
        vm.check()
    else:
        raise AssertionError("the last allocation was not reached")


@pytest.mark.parametrize("slots", [3, 300])  # of an index of three slots the memory is kept
def test_its_memory_is_given_back(drivers: Any, slots: int) -> None:
    alloc = drivers("alloc")
    live = alloc.live()
    vm = make(slots)
    for seed in range(20):
        indexed(drivers, vm, scattered(slots, 1000, seed))
        vm.set_flags(0, seed & 1)
    indexed(drivers, vm, scattered(slots, 1000))
    del vm
    assert alloc.live() == live


def test_its_kept_memory_is_given_back_once(drivers: Any) -> None:
    """A set keeps the memory of a small index. A fill that is undone clears the set."""
    alloc = drivers("alloc")
    many = make(300).map()
    live = alloc.live()
    vm = Memslots(512)
    vm.create_many(list(many)[:3])
    for seed in range(4):  # in both sets
        indexed(drivers, vm, scattered(3, 1000, seed))
        vm.set_flags(0, seed & 1)
    for id in range(3):
        vm.delete(id)
    with pytest.raises(ZeroDivisionError), vm.transaction() as tx:
        tx.create_many(many)
        raise ZeroDivisionError
    vm.create_many(list(many)[:3])
    for seed in range(4):
        indexed(drivers, vm, scattered(3, 1000, seed))
        vm.check()
        vm.set_flags(0, seed & 1)
    del vm, tx
    assert alloc.live() == live

"""Tests Backing: every kind of host memory, refused arguments, and what keeps the memory."""

from __future__ import annotations

import copy
import errno
import gc
import mmap
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from descriptors import descriptors
from fresh import run_fresh
from needs import needs_madvise

from memslots import PAGE_SIZE, Backing
from memslots.memory.backing import address_of

HUGE_PAGE = 2 << 20
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Returns a file of four pages, each filled with its number, from 1 on."""
    path = tmp_path / "file"
    path.write_bytes(b"".join(bytes([n]) * PAGE_SIZE for n in range(1, 5)))
    return path


MAKERS: dict[str, Callable[[int], Backing]] = {
    "anonymous": Backing.anonymous,
    "memfd": Backing.memfd,
    "buffer": lambda size: Backing(mmap.mmap(-1, size)),
}


# What all kinds have in common


@pytest.mark.parametrize("kind", MAKERS)
def test_memory_of_its_own(kind: str) -> None:
    backing = MAKERS[kind](3 * PAGE_SIZE)
    assert (backing.kind, backing.huge_pages, backing.writable) == (kind, None, True)
    assert backing.size == len(backing) == 3 * PAGE_SIZE
    assert backing.hva % PAGE_SIZE == 0
    assert backing.hva == address_of(backing)
    assert bytes(backing) == bytes(3 * PAGE_SIZE)
    view = memoryview(backing)
    assert (view.readonly, view.nbytes, view.format) == (False, 3 * PAGE_SIZE, "B")
    view[PAGE_SIZE - 1 : PAGE_SIZE + 1] = b"ab"
    assert bytes(memoryview(backing)[PAGE_SIZE - 2 : PAGE_SIZE + 2]) == b"\0ab\0"
    assert repr(backing) == f"<Backing: {kind}, 0x3000 bytes at {backing.hva:#x}>"


@pytest.mark.parametrize("kind", MAKERS)
def test_a_view_keeps_the_memory(kind: str) -> None:
    view = memoryview(MAKERS[kind](PAGE_SIZE))
    hva = address_of(view)
    gc.collect()
    assert mapped(hva)
    view[0] = 7
    assert view[0] == 7
    view.release()
    gc.collect()
    assert not mapped(hva)


def mapped(hva: int) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return any(start <= hva < end for start, end in ranges)


@pytest.mark.parametrize("kind", ["anonymous", "memfd"])
@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 1])
def test_sizes_that_are_not_whole_pages(kind: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be a multiple of 4096 above 0, not {size:#x}"):
        MAKERS[kind](size)


@pytest.mark.parametrize("kind", ["anonymous", "memfd"])
def test_sizes_that_cannot_be(kind: str) -> None:
    with pytest.raises(OverflowError, match="size must not be negative"):
        MAKERS[kind](-PAGE_SIZE)
    with pytest.raises(OverflowError, match="size does not fit its 63 bits"):
        MAKERS[kind](1 << 63)
    with pytest.raises((OSError, OverflowError)):
        MAKERS[kind](1 << 62)
    with pytest.raises(TypeError, match="size must be an integer, not 'str'"):
        MAKERS[kind]("4096")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", MAKERS)
def test_memory_cannot_be_pickled_or_copied(kind: str) -> None:
    backing = MAKERS[kind](PAGE_SIZE)
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="a Backing cannot be pickled or copied"):
            way(backing)


def test_nothing_of_it_can_be_set() -> None:
    backing = Backing.anonymous(PAGE_SIZE)
    for name in ("kind", "huge_pages", "hva", "size", "writable"):
        with pytest.raises(AttributeError):
            setattr(backing, name, None)


def wrong_arguments() -> None:
    """A Backing that never got a descriptor closes none, such as 0."""
    there = os.fstat(0)
    for arguments in ((), (b"", b""), (8,), ("0" * PAGE_SIZE,), (None,)):
        for call in (Backing, lambda *arguments: Backing.__new__(Backing, *arguments)):
            with pytest.raises(TypeError):
                call(*arguments)
    with pytest.raises(TypeError):
        Backing(b"", size=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="multiples of 4096"):
        Backing(b"")
    gc.collect()
    assert os.fstat(0) == there


def test_wrong_arguments_close_no_descriptor() -> None:
    run_fresh(wrong_arguments)


# Anonymous memory and huge pages


@needs_madvise
def test_without_the_pool_huge_pages_are_transparent() -> None:
    if not TRANSPARENT.exists():
        pytest.skip("this kernel has no transparent huge pages")
    # Not a multiple of a huge page: never from the pool.
    backing = Backing.anonymous(HUGE_PAGE + PAGE_SIZE, huge_pages=True)
    assert (backing.kind, backing.huge_pages) == ("anonymous", "transparent")
    assert backing.hva % HUGE_PAGE == 0
    assert backing.size == HUGE_PAGE + PAGE_SIZE
    assert "transparent huge pages" in repr(backing)
    memoryview(backing)[-1] = 1  # its last byte is there, wherever its beginning is
    assert "hg" in smaps(backing.hva)["VmFlags"].split()
    if "never" not in TRANSPARENT.read_text().split("[")[1]:
        memoryview(backing)[0] = 1
        assert smaps(backing.hva)["AnonHugePages"] != "0 kB" or not_one_is_free()


def not_one_is_free() -> bool:
    """Returns whether memory is too fragmented for a huge page, as far as /proc says."""
    orders = [line.split()[4:] for line in Path("/proc/buddyinfo").read_text().splitlines()]
    return sum(int(count) for order in orders for count in order[9:]) < 8


def smaps(hva: int) -> dict[str, str]:
    """Returns the entry of /proc for the mapping that holds an address."""
    found: dict[str, str] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            start, end = (int(number, 16) for number in first.split("-"))
            inside = start <= hva < end
        elif inside:
            found[first[:-1]] = rest.strip()
    return found


@pytest.mark.parametrize("kind", ["anonymous", "memfd"])
def test_huge_pages_from_the_pool(kind: str) -> None:
    if not POOL.exists() or int(POOL.read_text()) == 0:
        pytest.skip(f"the pool of huge pages is empty: {POOL}")
    make = getattr(Backing, kind)
    backing = make(HUGE_PAGE, huge_pages=True)
    assert (backing.kind, backing.huge_pages) == (kind, "hugetlb")
    assert backing.hva % HUGE_PAGE == 0
    memoryview(backing)[HUGE_PAGE - 1] = 1
    assert smaps(backing.hva)["KernelPageSize"] == "2048 kB"


@pytest.mark.parametrize("kind", ["anonymous", "memfd"])
def test_more_huge_pages_than_the_pool_has(kind: str) -> None:
    free = int(POOL.read_text()) if POOL.exists() else 0
    backing = getattr(Backing, kind)((free + 8) * HUGE_PAGE, huge_pages=True)
    wanted = "transparent" if kind == "anonymous" and TRANSPARENT.exists() else None
    assert (backing.kind, backing.huge_pages) == (kind, wanted)
    assert backing.size == (free + 8) * HUGE_PAGE
    memoryview(backing)[-1] = 1


@pytest.mark.parametrize("kind", ["anonymous", "buffer"])
def test_no_file_and_no_descriptor(kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind} memory has no file"):
        MAKERS[kind](PAGE_SIZE).fileno()


# A memfd


def test_a_memfd_is_shared_by_its_descriptor() -> None:
    backing = Backing.memfd(2 * PAGE_SIZE, name="ram of the guest")
    assert "memfd:ram of the guest" in str(Path(f"/proc/self/fd/{backing.fileno()}").readlink())
    assert not os.get_inheritable(backing.fileno())
    with mmap.mmap(backing.fileno(), 2 * PAGE_SIZE) as other:
        other[PAGE_SIZE] = 9
        assert bytes(backing)[PAGE_SIZE] == 9
        memoryview(backing)[0] = 8
        assert other[0] == 8


def test_a_memfd_is_sealed() -> None:
    backing = Backing.memfd(2 * PAGE_SIZE)
    for size in (0, PAGE_SIZE, 3 * PAGE_SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(backing.fileno(), size)
    assert os.fstat(backing.fileno()).st_size == 2 * PAGE_SIZE
    assert bytes(backing) == bytes(2 * PAGE_SIZE)


@pytest.mark.parametrize("huge_pages", [False, True])
def test_a_memfd_that_cannot_be_leaves_no_descriptor(huge_pages: bool) -> None:
    before = descriptors()
    with pytest.raises(OSError, match="Invalid"):
        Backing.memfd(HUGE_PAGE, name="n" * 1000, huge_pages=huge_pages)
    with pytest.raises(ValueError, match="null"):
        Backing.memfd(HUGE_PAGE, name="n\0", huge_pages=huge_pages)
    with pytest.raises((OSError, OverflowError)):
        Backing.memfd(1 << 62, huge_pages=huge_pages)
    assert descriptors() == before


def test_the_descriptors_go_with_the_memory(file: Path) -> None:
    before = len(descriptors())
    made = [Backing.memfd(PAGE_SIZE), Backing.file(file), Backing.file(file, shared=True)]
    assert len(descriptors()) > before + 2
    view = memoryview(made[0])
    fd = made[0].fileno()
    del made
    gc.collect()
    assert os.fstat(fd).st_size == PAGE_SIZE  # the view keeps the Backing and its descriptor
    view.release()
    gc.collect()
    assert len(descriptors()) == before


# A file


def test_a_file_of_ones_own(file: Path) -> None:
    backing = Backing.file(file)
    assert (backing.kind, backing.size, backing.writable) == ("file", 4 * PAGE_SIZE, True)
    assert bytes(backing) == file.read_bytes()
    memoryview(backing)[0] = 99
    assert bytes(backing)[0] == 99
    assert file.read_bytes()[0] == 1
    assert os.path.samestat(os.fstat(backing.fileno()), file.stat())


def test_a_shared_file(file: Path) -> None:
    backing = Backing.file(os.fspath(file), shared=True)
    memoryview(backing)[PAGE_SIZE] = 99
    assert file.read_bytes()[PAGE_SIZE] == 99


@pytest.mark.parametrize("shared", [False, True])
def test_a_readonly_file(file: Path, shared: bool) -> None:
    # Also, no process may open the file for writing.
    file.chmod(stat.S_IRUSR)
    backing = Backing.file(file, shared=shared, readonly=True)
    assert not backing.writable
    assert "read-only" in repr(backing)
    view = memoryview(backing)
    assert view.readonly
    assert bytes(view) == file.read_bytes()
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1
    # Nor through another Backing.
    assert not Backing(backing).writable
    with pytest.raises(TypeError, match="read-write"):
        struct.pack_into("B", backing, 0, 1)


@pytest.mark.parametrize(
    ("offset", "size", "pages"),
    [(0, None, 4), (PAGE_SIZE, None, 3), (3 * PAGE_SIZE, PAGE_SIZE, 1), (0, 2 * PAGE_SIZE, 2)],
)
def test_a_part_of_a_file(file: Path, offset: int, size: int | None, pages: int) -> None:
    backing = Backing.file(file, offset, size)
    assert backing.size == pages * PAGE_SIZE
    assert bytes(backing) == file.read_bytes()[offset : offset + pages * PAGE_SIZE]


@pytest.mark.parametrize(
    ("offset", "size", "what"),
    [
        (1, None, "offset 0x1 is not a multiple"),
        (0, 100, "size must be .*, not 0x64"),
        (0, 0, "size must be .*, not 0x0"),
        (0, 5 * PAGE_SIZE, r"\[0x0, 0x5000\) is not all in '.*/file', which has 0x4000 bytes"),
        (3 * PAGE_SIZE, 2 * PAGE_SIZE, r"\[0x3000, 0x5000\) is not all in"),
        (4 * PAGE_SIZE, None, "offset 0x4000 is not below the 0x4000 bytes"),
        (4 * PAGE_SIZE, PAGE_SIZE, r"\[0x4000, 0x5000\) is not all in"),
        ((1 << 64) - PAGE_SIZE, None, "offset 0xfffffffffffff000 is not below"),
        ((1 << 64) - PAGE_SIZE, 2 * PAGE_SIZE, r"\[0xfffffffffffff000, 0x10000000000001000\)"),
    ],
)
def test_a_part_that_a_file_has_not(file: Path, offset: int, size: int | None, what: str) -> None:
    before = descriptors()
    with pytest.raises(ValueError, match=what):
        Backing.file(file, offset, size)
    assert descriptors() == before


def test_a_file_of_no_whole_pages(file: Path) -> None:
    os.truncate(file, PAGE_SIZE + 1)
    with pytest.raises(ValueError, match="size must be a multiple of 4096 above 0, not 0x1001"):
        Backing.file(file)
    assert Backing.file(file, 0, PAGE_SIZE).size == PAGE_SIZE
    os.truncate(file, 0)
    with pytest.raises(ValueError, match="offset 0x0 is not below"):
        Backing.file(file)


def test_not_a_file(tmp_path: Path) -> None:
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        Backing.file(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    for shared in (False, True):
        with pytest.raises(IsADirectoryError):
            Backing.file(tmp_path, shared=shared)
        # Nor does it wait for a writer of the pipe.
        with pytest.raises(OSError, match="fifo") as caught:
            Backing.file(tmp_path / "fifo", shared=shared)
        assert caught.value.errno == errno.ENODEV
    for wrong in (8, np.uint64(8), np.array(8)):
        with pytest.raises(TypeError):
            Backing.file(wrong)  # type: ignore[arg-type]
    assert descriptors() == before


# Memory that the caller already has


def aligned(pages: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    room = np.zeros((pages + 1) * PAGE_SIZE, np.uint8)
    skip = -room.ctypes.data % PAGE_SIZE
    return room[skip : skip + pages * PAGE_SIZE]


def test_a_numpy_array() -> None:
    array = aligned(2)
    backing = Backing(array)
    assert (backing.kind, backing.hva, backing.size) == ("buffer", array.ctypes.data, 2 * PAGE_SIZE)
    memoryview(backing)[5] = 7
    assert array[5] == 7
    assert Backing(array.view(np.uint64).reshape(16, 64)).hva == array.ctypes.data
    array.flags.writeable = False
    assert backing.writable
    assert not Backing(array).writable


def test_buffers_that_are_not_of_pages() -> None:
    array = aligned(2)
    for wrong in (array[1:], array[:-1], array[8 : PAGE_SIZE + 8], array[:0]):
        with pytest.raises(ValueError, match="must be multiples of 4096, above 0"):
            Backing(wrong)
    room = bytearray(2 * PAGE_SIZE)
    off = address_of(room) % PAGE_SIZE
    if off:  # the usual case: an object's header comes first
        with pytest.raises(ValueError, match="must be multiples of 4096"):
            Backing(room)
    with pytest.raises((BufferError, ValueError), match="contiguous"):
        Backing(array[::2])
    room.append(1)  # no Backing holds it


def test_a_buffer_stays_as_it_is_while_it_is_held() -> None:
    memory = mmap.mmap(-1, 2 * PAGE_SIZE)
    room = bytearray(3 * PAGE_SIZE)
    skip = -address_of(room) % PAGE_SIZE
    made = [Backing(memory), Backing(memoryview(room)[skip : skip + PAGE_SIZE])]
    views = [memoryview(backing) for backing in made]
    del made
    with pytest.raises(BufferError):
        memory.close()
    with pytest.raises(BufferError):
        memory.resize(PAGE_SIZE)
    with pytest.raises(BufferError):
        room.append(1)
    for view in views:
        view.release()
    room.append(1)
    memory.close()

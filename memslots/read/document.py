"""A MemoryMap as JSON, and back.

Addresses are hexadecimal strings, since not every JSON reader keeps 64 bits of a number.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from typing import Any

from memslots.errors import InvalidRegionError
from memslots.read.table import flag_names
from memslots.values.guestmemfd import GuestMemfd
from memslots.values.integers import PAGE_SHIFT, PAGE_SIZE
from memslots.values.records import Flags, Slot

#: The required keys of a slot; "flags" and "id" may be left out.
_ADDRESSES = ("guest_phys_addr", "memory_size", "userspace_addr")


def slot_document(slot: Slot, any_id: bool = False) -> dict[str, Any]:
    """Returns a slot for json.dumps; with `any_id`, without its id."""
    document: dict[str, Any] = {} if any_id else {"id": slot.id}
    document["flags"] = flag_names(slot.flags).replace("-", "")
    document["guest_phys_addr"] = hex(slot.guest_phys_addr)
    document["memory_size"] = slot.memory_size
    document["userspace_addr"] = hex(slot.userspace_addr)
    return document


def _any_id(base_gfn: int, npages: int, userspace_addr: int, flags: int = 0) -> Slot:
    return Slot(0, 0, base_gfn, npages, userspace_addr, flags)


def text_of(as_id: int, generation: int, items: Iterable[Slot | tuple[int, ...]]) -> str:
    """Returns the JSON text of a map; tuples are slots that may have any id.

    The text refers to each file by a number of its own in this map, not by a name.
    """
    slots = []
    files: dict[GuestMemfd, int] = {}
    for item in items:
        if not isinstance(item, Slot):
            base_gfn, npages, userspace_addr, flags = item
            item = Slot(0, 0, base_gfn, npages, userspace_addr, flags)
            slots.append(slot_document(item, True))
            continue
        slots.append(slot_document(item))
        memfd = item.guest_memfd
        if memfd is not None:
            slots[-1]["guest_memfd"] = files.setdefault(memfd, len(files))
            slots[-1]["guest_memfd_size"] = memfd.size
            slots[-1]["guest_memfd_offset"] = hex(item.guest_memfd_offset)
    document = {"as_id": as_id, "generation": generation, "slots": slots}
    return json.dumps(document, indent=1)


def map_of_text(text: str | bytes) -> tuple[list[Any], int, int]:
    """Returns the slots, the address space and the generation in a JSON text.

    A slot is a tuple, or a Slot if it has a guest_memfd. Raises ValueError for a text that is no
    JSON, InvalidRegionError for JSON that is no map.
    """
    try:
        return map_of_document(json.loads(text))
    except RecursionError:
        raise InvalidRegionError(
            errno.EINVAL, "the values of a map are not nested as deeply as those of this JSON"
        ) from None


def map_of_document(document: object) -> tuple[list[Any], int, int]:
    """Does the same for a result of json.loads: the document, or its list of slots alone."""
    if isinstance(document, list):
        document = {"slots": document}
    if not isinstance(document, dict) or not isinstance(document.get("slots"), list):
        raise InvalidRegionError(errno.EINVAL, 'a map is a JSON object with a list "slots"')
    numbers = [_number(document.get(name, 0), name) for name in ("as_id", "generation")]
    files: dict[int, GuestMemfd] = {}
    slots = [
        _slot(slot, f"slot {i} of the map", numbers[0], files)
        for i, slot in enumerate(document["slots"])
    ]
    return slots, numbers[0], numbers[1]


def _slot(
    slot: object, name: str, as_id: int, files: dict[int, GuestMemfd]
) -> Slot | tuple[int, ...]:
    if not isinstance(slot, dict):
        raise InvalidRegionError(errno.EINVAL, f"{name} is not a JSON object: {slot!r}")
    for key in _ADDRESSES:
        if key not in slot:
            raise InvalidRegionError(errno.EINVAL, f'{name} has no "{key}"')
    gpa, size, hva = (_number(slot[key], f"{name}: {key}") for key in _ADDRESSES)
    for number, key in ((gpa, "guest_phys_addr"), (size, "memory_size")):
        if number % PAGE_SIZE:
            raise InvalidRegionError(
                errno.EINVAL, f"{name}: {key} {number:#x} is not a multiple of {PAGE_SIZE}", 2
            )
    fields = (gpa >> PAGE_SHIFT, size >> PAGE_SHIFT, hva, _flags(slot.get("flags", 0), name))
    if fields[3] & Flags.GUEST_MEMFD and "guest_memfd_size" in slot:
        return Slot(
            _number(slot.get("id"), f"{name}: id"), as_id, *fields, *_file(slot, name, files)
        )
    if slot.get("id") is None:
        return fields
    return (*fields, _number(slot["id"], f"{name}: id"))


def _file(slot: dict[str, Any], name: str, files: dict[int, GuestMemfd]) -> tuple[GuestMemfd, int]:
    """Returns the file that stands for the slot's file number in this map, and the offset."""
    number, size, offset = (
        _number(slot.get(f"guest_memfd{what}"), f"{name}: guest_memfd{what}")
        for what in ("", "_size", "_offset")
    )
    if number not in files:
        files[number] = GuestMemfd(size)
    return files[number], offset


def _number(given: object, name: str) -> int:
    """Returns the value of a JSON integer, or of a string that Python reads as an integer."""
    if isinstance(given, str):
        try:
            return int(given, 0)
        except ValueError:
            pass
    elif isinstance(given, int) and not isinstance(given, bool):
        return given
    raise InvalidRegionError(errno.EINVAL, f"{name} is not a whole number: {given!r}")


def _flags(given: object, name: str) -> int:
    """Returns the value of flags, given as names with bars between them, or as a number."""
    if not isinstance(given, str) or given.strip()[:1].isdigit():
        return _number(given, f"{name}: flags")
    flags = 0
    for word in filter(None, (part.strip() for part in given.split("|"))):
        if word not in Flags.__members__:
            raise InvalidRegionError(errno.EINVAL, f"{name}: unknown flag {word!r}", 1)
        flags |= Flags[word]
    return flags

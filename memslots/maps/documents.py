"""The JSON of this package: MemoryMap.to_json, `memslots map --json` and `replay --json`."""

from __future__ import annotations

import json
import re
from typing import Any

from memslots.errors import MemslotError
from memslots.maps.entries import KINDS, Entry, Map, joined
from memslots.read.document import map_of_document
from memslots.read.memorymap import MemoryMap
from memslots.read.table import flag_names
from memslots.values.records import Flags

#: A log with an object in each line.
_JSON_LINES = re.compile(r"\s*\{[^\n]*\}\s*\n\s*\{[^\n]*\}\s*(?:\n|\Z)")
_JSON = re.compile(r"\ufeff?\s*(?:\{\s*[\"}]|\[\s*[\]{])")


class Json:
    """JSON of one map, or of all maps in a document of the command."""

    name = "json"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return _JSON.match(text) is not None and _JSON_LINES.match(text) is None

    @staticmethod
    def read(text: str) -> list[Map]:
        """Returns its maps. Raises ValueError or InvalidRegionError if it holds none."""
        document = json.loads(text.lstrip("\ufeff \r\n\t"))
        try:
            if isinstance(document, dict) and "files" in document:
                return [
                    found
                    for file in document["files"]
                    for vm in file.get("vms", ())
                    for found in _of_final_map(vm["final_map"])
                ]
            memory_map = MemoryMap(*map_of_document(document))
        except MemslotError as error:
            raise ValueError(error.strerror) from None
        except KeyError as missing:
            raise ValueError(f"an entry has no {missing}") from None
        return [map_of(memory_map, "json")]


def map_of(memory_map: MemoryMap, format: str) -> Map:
    """Returns a MemoryMap as a Map."""
    entries = [
        Entry(
            slot.guest_phys_addr,
            slot.memory_size,
            "rom" if slot.flags & Flags.READONLY else "ram",
            userspace_addr=slot.userspace_addr,
            id=slot.id,
            flags=int(slot.flags),
        )
        for slot in memory_map
    ]
    return Map(joined(entries), as_id=memory_map.as_id, format=format)


def _of_final_map(slots: list[dict[str, Any]]) -> list[Map]:
    spaces: dict[int, list[Entry]] = {}
    for slot in slots:
        flags = sum(
            Flags[word] for word in slot.get("flags", "").split("|") if word in Flags.__members__
        )
        kind = slot.get("kind", "rom" if flags & Flags.READONLY else "ram")
        offset, host = (
            None if slot.get(name) is None else int(str(slot[name]), 0)
            for name in ("offset", "userspace_addr")
        )
        entry = Entry(
            int(str(slot["guest_phys_addr"]), 0),
            int(str(slot["memory_size"]), 0),
            kind if kind in KINDS else "other",
            slot.get("name", ""),
            offset,
            host,
            slot.get("id"),
            flags,
            slot.get("backing", ""),
        )
        spaces.setdefault(slot.get("as_id", 0), []).append(entry)
    return [
        Map(joined(entries), as_id=as_id, format="json")
        for as_id, entries in sorted(spaces.items())
    ]


def document(entry: Entry, as_id: int) -> dict[str, Any]:
    """Returns an entry for json.dumps, with the fields of `final_map` in `replay --json`."""
    found: dict[str, Any] = {"as_id": as_id, "id": entry.id}
    found["flags"] = flag_names(entry.flags).replace("-", "")
    found["guest_phys_addr"] = hex(entry.start)
    found["memory_size"] = entry.size
    host = entry.userspace_addr
    found["userspace_addr"] = None if host is None else hex(host)
    found["kind"] = entry.kind
    found["name"] = entry.name
    found["backing"] = entry.backing
    found["offset"] = None if entry.offset is None else hex(entry.offset)
    return found

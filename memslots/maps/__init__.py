"""Maps of guest memory in common formats: reading, writing and looking up.

``memslots.maps.read(path)`` reads any of FORMATS and returns Maps. Each entry of a Map is a range
of bytes, with its kind (RAM, ROM, a device's registers) and its place in a file. ``beside``
completes Maps with what a second file says of the host memory behind them, and ``in_raw`` with the
place of their entries in a file of raw memory.
"""

from memslots.maps.entries import KINDS, MEMORY, Entry, Map
from memslots.maps.host import beside
from memslots.maps.raw import LAYOUTS, in_raw, raw_layout
from memslots.maps.reading import FORMATS, read
from memslots.maps.writing import WRITERS, write

__all__ = [
    "FORMATS",
    "KINDS",
    "LAYOUTS",
    "MEMORY",
    "WRITERS",
    "Entry",
    "Map",
    "beside",
    "in_raw",
    "raw_layout",
    "read",
    "write",
]

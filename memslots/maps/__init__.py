"""Maps of guest memory in common formats: reading, writing and looking up.

``memslots.maps.read(path)`` reads any of FORMATS and returns Maps. Each entry of a Map is a range
of bytes, with its kind (RAM, ROM, a device's registers) and its place in a file. ``beside``
completes Maps with what a second file says of the host memory behind them.
"""

from memslots.maps.entries import KINDS, MEMORY, Entry, Map
from memslots.maps.host import beside
from memslots.maps.reading import FORMATS, read
from memslots.maps.writing import WRITERS, write

__all__ = ["FORMATS", "KINDS", "MEMORY", "WRITERS", "Entry", "Map", "beside", "read", "write"]

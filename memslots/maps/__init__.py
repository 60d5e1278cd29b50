"""Maps of guest memory in the forms that people have them in: read, written, looked up.

``memslots.maps.read(path)`` takes any of FORMATS and returns Maps, whose entries are ranges of
bytes with what is there: RAM, ROM, a device's registers, and where in a file it is.
"""

from memslots.maps.entries import KINDS, MEMORY, Entry, Map
from memslots.maps.reading import FORMATS, read
from memslots.maps.writing import WRITERS, write

__all__ = ["FORMATS", "KINDS", "MEMORY", "WRITERS", "Entry", "Map", "read", "write"]

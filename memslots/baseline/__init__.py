"""The design that Linux had until 5.16, with the API of Memslots, to measure against.

Not for use: every change copies every slot. Nothing else imports it.
"""

from memslots.baseline.arraymemslots import ArrayMemslots
from memslots.baseline.reader import ArrayAddressSpace, ArrayVcpu

__all__ = ["ArrayAddressSpace", "ArrayMemslots", "ArrayVcpu"]

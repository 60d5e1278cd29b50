"""The design that Linux had until 5.16, with the face of Memslots: kept to measure against.

Not for use: every change copies every slot. Nothing else imports it.
"""

from memslots.baseline.arrayfaces import ArrayAddressSpace, ArrayVcpu
from memslots.baseline.arraymemslots import ArrayMemslots

__all__ = ["ArrayAddressSpace", "ArrayMemslots", "ArrayVcpu"]

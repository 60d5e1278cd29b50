"""The gate for Cython code outside: from the Python objects to the structs of memslots.core.

What these give is borrowed: keep the object. Read between srcu_enter and srcu_leave on
memslots_reader, or, where there is a GIL, with it held and no Python code run in between; change
nothing.
"""

from memslots.core.machine cimport machine
from memslots.core.space cimport space
from memslots.core.srcu cimport srcu_reader

# The address space that a Memslots (number 0), an AddressSpace or a Vcpu reads. TypeError for
# anything else.
cdef space *memslots_space(object face) except NULL
# Where to enter and leave while reading it: a Vcpu's own reader, otherwise the calling thread's.
cdef srcu_reader *memslots_reader(object face) except NULL
# What the address spaces of its virtual machine share.
cdef machine *memslots_machine(object face) except NULL

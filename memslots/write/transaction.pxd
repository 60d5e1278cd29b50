"""Several changes in one step. Not installed: Cython code outside goes through memslots.pxd."""

from memslots.write.writer cimport Writer

# A Transaction on what a Writer writes; `owner` keeps it. Not begun.
cdef object transaction_of(object owner, Writer writer)

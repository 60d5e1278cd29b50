# Makes memslots.core a package that other Cython code can cimport from.

# Makes memslots a package that other Cython code can cimport from.

# Makes memslots.baseline a package that its modules can cimport from.

# Makes memslots.baseline a package from which its modules can cimport.

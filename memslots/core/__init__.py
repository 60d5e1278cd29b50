"""The C level: structs and free functions for `cimport`, nothing for `import`."""

"""The write side: the lock, listeners, operations, the writer, transactions, pickling."""

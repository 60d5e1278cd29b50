"""Getting from one map to another."""

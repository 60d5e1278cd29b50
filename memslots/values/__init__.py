"""What crosses the border between Python and C: integers, buffers, records, limits, rules."""

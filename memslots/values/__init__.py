"""Values that cross the border between Python and C: integers, buffers, records, limits, rules."""

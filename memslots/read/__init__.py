"""The read side: the readers' methods, batches, ranges, and the sections that protect them."""

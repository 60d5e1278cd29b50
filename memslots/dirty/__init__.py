"""Dirty logs as Python has them: a slot's bitmap, and runs of pages across slots."""

"""Dirty logs for Python callers: a slot's bitmap, and runs of pages across slots."""

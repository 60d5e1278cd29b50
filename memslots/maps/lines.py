"""Numbers as people write them in maps."""

from __future__ import annotations


def number(text: str) -> int:
    """A whole number, decimal or with 0x; ValueError."""
    return int(text.strip().replace("_", ""), 0)

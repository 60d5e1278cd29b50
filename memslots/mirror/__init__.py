"""Makes every change in a backend as well: what a backend is, and the order of its calls."""

from memslots.mirror.backend import Backend

__all__ = ["Backend"]

"""`python -m memslots` is the `memslots` command."""

from __future__ import annotations

import sys

from memslots.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m memslots` is the `memslots` command."""

from __future__ import annotations

import sys

from memslots.cli import main

sys.exit(main())

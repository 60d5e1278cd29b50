"""The benchmarks, for asv. README.md says how to run them.

asv imports this package without this directory on the path; a file that is run by itself has it
there. This module adds it, so the benchmarks find the modules that they share either way. The
directory above stays off the path: it has the package's source and no compiled module.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

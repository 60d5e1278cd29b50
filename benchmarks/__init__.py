"""The benchmarks, for asv. README.md says how to run them.

asv imports this package without its directory on the path; a file that is run by itself has it
there. So it is put there: what the benchmarks share is found either way, and the directory above,
with the package's source and no compiled module, stays off the path.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

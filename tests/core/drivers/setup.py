"""Builds the drivers that are named as arguments, in the current directory.

    python setup.py CHECKOUT NAME_driver.pyx ... build_ext --inplace

The .pxd files come from the checkout, because the drivers drive parts of the core that are not
installed for others. The switches are those of the package's own build: MEMSLOTS_DEBUG,
MEMSLOTS_SANITIZE.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CPUS = len(os.sched_getaffinity(0))


def main() -> None:
    """Takes its own arguments from the command line and leaves the rest to setuptools."""
    checkout = sys.argv[1]
    sources = [argument for argument in sys.argv if argument.endswith(".pyx")]
    sys.argv[1:] = [argument for argument in sys.argv[2:] if argument not in sources]
    sanitize = os.environ.get("MEMSLOTS_SANITIZE", "")
    debug = os.environ.get("MEMSLOTS_DEBUG", "") not in ("", "0")
    # As in the package's own build: with MEMSLOTS_DEBUG no optimisation.
    optimisation = "-O0" if debug else "-O1"
    flags = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"] if sanitize else []
    extensions = [
        Extension(
            Path(source).stem,
            [source],
            extra_compile_args=[optimisation, "-g" if debug or sanitize else "-g0", *flags],
            extra_link_args=flags,
            define_macros=[("MEMSLOTS_DEBUG", "1")] if debug else [],
        )
        for source in sources
    ]
    setup(
        ext_modules=cythonize(
            extensions,
            build_dir="c",
            nthreads=CPUS,
            include_path=[checkout],
            compiler_directives={"freethreading_compatible": True, "language_level": "3"},
            quiet=True,
        ),
        options={"build_ext": {"parallel": CPUS}},
    )


if __name__ == "__main__":
    main()

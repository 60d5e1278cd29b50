"""Builds wrong.pyx as the package is built; the last argument is the path of its setup.py."""

from __future__ import annotations

import runpy
import sys
from typing import Any

import setuptools
from Cython.Build import cythonize


def no_setup(**_: Any) -> None:
    """Stands for setuptools.setup while the package's setup.py is read for its options."""


def main() -> None:
    """Builds the module in place."""
    setup, setuptools.setup = setuptools.setup, no_setup
    compile_args, link_args, _ = runpy.run_path(sys.argv.pop())["compiler_options"]()
    setup(
        name="wrong",
        ext_modules=cythonize(
            setuptools.Extension(
                "wrong",
                ["wrong.pyx"],
                extra_compile_args=compile_args,
                extra_link_args=link_args,
            )
        ),
    )


if __name__ == "__main__":
    main()

"""Builds outside.pyx, the example of docs/reference.md, as its reader would."""

from Cython.Build import cythonize
from setuptools import setup

setup(name="outside", ext_modules=cythonize("outside.pyx"))

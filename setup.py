"""Build the extension modules. Everything else is in pyproject.toml.

Three switches, read from the environment, each off unless set:

- MEMSLOTS_DEBUG=1: no optimisation, debug symbols, the core's own assertions.
- MEMSLOTS_COVERAGE=1: counts for gcov, which tell what lines of the .pyx files have run.
- MEMSLOTS_SANITIZE=address,undefined (or thread): the named sanitizers of the C compiler.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel as setuptools_bdist_wheel
from setuptools.command.build_ext import build_ext as setuptools_build_ext

DEBUG = os.environ.get("MEMSLOTS_DEBUG", "") not in ("", "0")
COVERAGE = os.environ.get("MEMSLOTS_COVERAGE", "") not in ("", "0")
SANITIZE = os.environ.get("MEMSLOTS_SANITIZE", "")

# What a program calls a few times, and calls that take as long as the work they order: size is
# what counts there. (A change of a slot and an access to memory are as fast with -Os, within 5 %.)
# Python's calls elsewhere gain nothing from -O3 over -O2, and are a tenth to two fifths slower with
# -Os; the loops of core/ gain from -O3.
SELDOM_CALLED = {
    "baseline/writer",
    "core/invariants",
    "core/machine",
    "dirty/logs",
    "dirty/runs",
    "memory/backing",
    "memory/guestmemory",
    "memory/known",
    "memory/marks",
    "memory/segments",
    "memslots",
    "read/batch",
    "read/memorymap",
    "read/ranges",
    "read/room",
    "values/buffers",
    "values/limits",
    "values/records",
    "values/rules",
    "write/filling",
    "write/freeids",
    "write/listeners",
    "write/operations",
    "write/transaction",
    "write/writer",
}


# Outside of core no loop runs so often that it gains from being aligned: a hundredth of the size.
NOT_ALIGNED = [f"-fno-align-{what}" for what in ("functions", "loops", "jumps", "labels")]
# Code in a segment of its own is three mappings more of each of sixty modules, and padding.
FEWER_SEGMENTS = ["-Wl,-z,noseparate-code"]
# The compiler's start files run what C++ and `atexit` leave in a module: a fortieth of the size.
NO_START_FILES = ["-nostartfiles"]
# The module that calls pthread_atfork, which does need them.
CALLS_ATFORK = "write/writer"


# Cython writes this in C before the code of a line: the file, and the line's number. It also writes
# it before the constants of a line, which are made when the module is imported.
MARKER = re.compile(r' */\* "(.+)":(\d+)')
CONSTANTS = "static int __Pyx_InitCachedConstants(__pyx_mstatetype *__pyx_mstate) {"
# The folder of the objects and of gcov's notes on them. pip would remove a folder of its own.
COUNTED = "build/coverage"


def optimisation(module: Path) -> list[str]:
    if DEBUG or COVERAGE:  # gcov's manual: optimisation would make one line of several
        return ["-O0"]
    name = module.relative_to("memslots").with_suffix("")
    if name.as_posix() in SELDOM_CALLED:
        return ["-Os"]
    return ["-O3"] if name.parts[0] == "core" else ["-O2", *NOT_ALIGNED]


def compiler_options() -> tuple[list[str], list[str], list[tuple[str, str | None]]]:
    """The C compiler's arguments, the linker's, and the macros, for the switches that are set."""
    compile_args = ["-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-function"]
    # Of Python's own flags, all of which CFLAGS in the environment takes away: numbers that wrap,
    # and no assertions.
    compile_args += ["-fwrapv"] if DEBUG else ["-fwrapv", "-DNDEBUG"]
    link_args: list[str] = []
    # To decompress its strings, a module made by Cython 3.2 would import zlib.
    macros: list[tuple[str, str | None]] = [("CYTHON_COMPRESS_STRINGS", "0")]
    if DEBUG:
        compile_args += ["-g3", "-UNDEBUG"]
        macros.append(("MEMSLOTS_DEBUG", "1"))
    elif not SANITIZE:
        # Python's own flags ask for debug information, which is four fifths of a module's size;
        # the names of static functions are a sixth of what is left, and what unwinding needs is a
        # twelfth: nothing here throws.
        compile_args += ["-g0", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]
        # The names of the compiler and of the build, in each module, do not compress. Calls of
        # CPython through a table of pointers need no stubs, which are a twentieth of the size.
        compile_args += ["-fno-ident", "-fno-plt"]
        link_args += ["-Wl,--strip-all", "-Wl,--build-id=none", *FEWER_SEGMENTS]
    if COVERAGE:
        # Threads count, too. The second warns of arrays that a called function fills.
        flags = ["--coverage", "-fprofile-update=atomic"]
        compile_args += [*flags, "-Wno-maybe-uninitialized"]
        link_args += flags
    if SANITIZE:
        flags = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
        # gcc's manual: with a sanitizer the first warns of what is no fault. The second says of
        # every fence that ThreadSanitizer does not see it.
        compile_args += [*flags, "-g", "-Wno-maybe-uninitialized", "-Wno-tsan"]
        link_args += flags
    return compile_args, link_args, macros


def start_files(module: Path) -> list[str]:
    name = module.relative_to("memslots").with_suffix("").as_posix()
    return [] if DEBUG or COVERAGE or SANITIZE or name == CALLS_ATFORK else NO_START_FILES


def name_lines(source: Path) -> None:
    """Tells the C compiler which line of a .pyx or .pxd each line of a C function was made from.

    Cython's `emit_linenums` is not enough for gcov. With it, a number holds until the next number,
    so the code that Cython adds after a function counts as that function's lines, too.
    """
    text = source.read_text()
    if "\n#line" in text:
        return  # an earlier build made this file
    named: list[str] = []
    here = ""
    constants = False
    for number, line in enumerate(text.splitlines(), 1):
        constants = line == CONSTANTS or (constants and line != "}")
        marker = MARKER.fullmatch(line)
        if marker and not constants:
            here = f'#line {marker[2]} "{marker[1]}"'
        elif here and (line.startswith("}") or line == "  /* function exit code */"):
            here = ""
            named.append(f'#line {number} "{source}"')
        named += [here, line] if here else [line]
    source.write_text("\n".join(named) + "\n")


def takes(compiler: list[str], options: list[str]) -> bool:
    """Returns whether a C compiler knows these options, which some of them do not."""
    with TemporaryDirectory() as folder:
        source = Path(folder, "empty.c")
        source.write_text("int empty;\n")
        command = [*compiler, "-shared", "-fPIC", "-Werror", *options, str(source)]
        made = subprocess.run([*command, "-o", str(source.with_suffix(".so"))], capture_output=True)
    return made.returncode == 0


class build_ext(setuptools_build_ext):  # noqa: N801 (the name setuptools knows)
    """Runs Cython when extensions are built and at no other time, so that an sdist holds no C."""

    parallel: int | None

    def finalize_options(self) -> None:
        if COVERAGE:
            self.build_temp = COUNTED
        super().finalize_options()

    def run(self) -> None:
        if sys.platform != "linux":
            sys.exit(
                f"memslots needs Linux, and this is {sys.platform}: guest memory, forks and KVM"
                " are used through Linux's own calls"
            )
        # `build_ext --parallel N` and `[build_ext] parallel` still decide.
        self.parallel = self.parallel or len(os.sched_getaffinity(0))
        super().run()

    def build_extensions(self) -> None:
        from Cython.Build import cythonize

        self.extensions[:] = cythonize(
            self.extensions,
            build_dir=str(Path(self.build_temp) / "cython"),
            nthreads=self.parallel,
            compiler_directives={
                "language_level": "3",
                "freethreading_compatible": True,
                "boundscheck": False,
                "wraparound": False,
                "initializedcheck": False,
                "cdivision": True,
                "embedsignature": True,
                "embedsignature.format": "clinic",
                # Cython's own function type does not check what it is called on: with it,
                # Memslots.lookup(8, 3) would read whatever 8 is. CPython's own checks.
                "binding": False,
                # The classes that can be pickled say how; the others hold pointers, and object's
                # own __reduce_ex__ refuses them.
                "auto_pickle": False,
            },
        )
        if COVERAGE:
            for extension in self.extensions:
                name_lines(Path(*extension.sources))
        unknown = {
            option
            for options in (NOT_ALIGNED, FEWER_SEGMENTS, NO_START_FILES)
            if not takes(self.compiler.compiler, options)
            for option in options
        }
        for extension in self.extensions:
            extension._needs_stub = False
            for arguments in (extension.extra_compile_args, extension.extra_link_args):
                arguments[:] = [each for each in arguments if each not in unknown]
        super().build_extensions()


class bdist_wheel(setuptools_bdist_wheel):  # noqa: N801 (the name setuptools knows)
    """Compresses the finished wheel again, as far as zlib can: 0.4 % smaller."""

    def run(self) -> None:
        super().run()
        for what, _, path in self.distribution.dist_files:
            if what == "bdist_wheel":
                compress_more(Path(path))


def compress_more(wheel: Path) -> None:
    smaller = wheel.with_suffix(".smaller")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w") as new:
        for member in old.infolist():
            new.writestr(member, old.read(member), member.compress_type, compresslevel=9)
    smaller.replace(wheel)


def extensions() -> list[Extension]:
    compile_args, link_args, macros = compiler_options()
    return [
        Extension(
            ".".join(path.with_suffix("").parts),
            [str(path)],
            depends=[str(p) for p in sorted(Path("memslots").rglob("*.pxd"))],
            extra_compile_args=[*compile_args, *optimisation(path)],
            extra_link_args=[*link_args, *start_files(path)],
            define_macros=macros,
        )
        for path in sorted(Path("memslots").rglob("*.pyx"))
    ]


setup(ext_modules=extensions(), cmdclass={"bdist_wheel": bdist_wheel, "build_ext": build_ext})

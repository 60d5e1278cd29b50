"""Checks that modules compiled for musl need nothing that musl does not have.

    python tests/musl/check.py TARGET DIRECTORY

TARGET is zig's name of a system: x86_64-linux-musl, say. Each module under DIRECTORY may need no
library but libc.so, which is musl's. Each symbol that a module does not define must be one of this
Python's, or zig must find it when it links a program with musl.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection


def needs(module: Path) -> tuple[set[str], set[str]]:
    """Returns the libraries that a module needs, and the symbols that it does not define."""
    with module.open("rb") as file:
        elf = ELFFile(file)
        (dynamic,) = (each for each in elf.iter_sections() if isinstance(each, DynamicSection))
        symbols = elf.get_section_by_name(".dynsym")
        assert isinstance(symbols, SymbolTableSection)
        libraries = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
        undefined = {
            symbol.name
            for symbol in symbols.iter_symbols()
            if symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_WEAK"
        }
    return libraries, undefined - {""}


def not_in_musl(target: str, names: Iterable[str]) -> set[str]:
    """Returns which symbols zig does not find when it links them with musl."""
    with TemporaryDirectory() as folder:
        source = Path(folder, "program.s")
        lines = [".globl main", ".text", "main:", ".data", *(f".quad {name}" for name in names)]
        source.write_text("\n".join([*lines, ""]))
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-static", str(source)]
        command += ["-o", str(source.with_suffix(""))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    missing = set(re.findall(r"undefined symbol: (\S+)", done.stderr))
    if done.returncode != 0 and not missing:
        raise SystemExit(done.stderr)
    return missing


def main(target: str, directory: str) -> None:
    # What finds nothing missing must be such that it would find something.
    glibc_only = "gnu_get_libc_version"
    if not_in_musl(target, ["strlen", glibc_only]) != {glibc_only}:
        raise SystemExit(f"zig finds {glibc_only} in musl, or does not find strlen")
    modules = sorted(Path(directory).rglob("*.so"))
    if not modules:
        raise SystemExit(f"there is no module under {directory}")
    wrong: list[str] = []
    users: dict[str, list[str]] = {}
    for module in modules:
        libraries, undefined = needs(module)
        if others := libraries - {"libc.so"}:
            wrong.append(f"{module.name} needs {', '.join(sorted(others))}")
        for name in undefined:
            if not hasattr(ctypes.pythonapi, name) or not re.match("_?Py", name):
                users.setdefault(name, []).append(module.name)
    missing = not_in_musl(target, sorted(users))
    wrong += [f"{', '.join(users[name])}: musl has no {name}" for name in sorted(missing)]
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    print(f"{target}: {len(modules)} modules, {len(users)} symbols of a C library")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])

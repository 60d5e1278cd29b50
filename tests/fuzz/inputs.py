"""Runs inputs of one target again without a fuzzer, from files and folders.

`python tests/fuzz/inputs.py calls|traces PATH...` prints the number of inputs. With `--show` in
front of the paths it also prints each input as text. It ends at the first input that fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    # Python puts a script's own folder on the path; the imports start from tests/.
    sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz import fuzz_calls, fuzz_traces

TARGETS = {"calls": fuzz_calls.one_input, "traces": fuzz_traces.one_input}


def files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.iterdir()) if path.is_dir() else [path]


def show(target: str, data: bytes) -> str:
    """Returns an input as text."""
    if target == "traces":
        return f"  handed over in way {data[0] if data else 0}: {data[1:]!r}"
    machine, calls = fuzz_calls.decode(data)
    lines = [f"machine {machine}", *(f"{name}{values}" for name, values in calls)]
    return "\n".join("  " + line for line in lines)


def main(target: str, *arguments: str) -> None:
    shown = arguments[:1] == ("--show",)
    count = 0
    for path in files([Path(argument) for argument in arguments[shown:]]):
        data = path.read_bytes()
        if shown:
            print(path, show(target, data), sep="\n", flush=True)
        try:
            TARGETS[target](data)
        except BaseException:
            print(f"{path} fails:", file=sys.stderr)
            raise
        count += 1
    print(f"{target}: {count} inputs")


if __name__ == "__main__":
    main(*sys.argv[1:])

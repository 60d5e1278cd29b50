"""A replay as two tables, a row for each VM and a row for each gap: CSV or Parquet.

docs/command.md describes the columns. A row is written when its input has been replayed, so a
thousand inputs need no more memory than one.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from memslots import PAGE_SHIFT
from memslots.replay import Report, VmReport
from memslots.traces.gaps import Gap

PARQUET_MISSING = "--parquet needs pyarrow: pip install 'memslots[fleet]'"
#: Rows that are collected before they are written, as one row group of Parquet.
ROWS = 1 << 16

Cell = int | str | None


class TableError(Exception):
    """A table cannot be written; the message says which, and why."""


class Column(NamedTuple):
    """A column: its name, and its type in Parquet."""

    name: str
    type: str


#: Columns of both tables that say which VM a row is about.
_VM = (
    Column("file", "string"),
    Column("vm", "int64"),
)
VM_COLUMNS = (
    *_VM,
    Column("name", "string"),
    Column("process", "int64"),
    Column("fd", "int64"),
    Column("format", "string"),
    Column("calls", "int64"),
    Column("lost", "int64"),
    Column("disagreements", "int64"),
    Column("refused", "int64"),
    Column("slots", "int64"),
    Column("most_slots", "int64"),
    Column("memory_size", "uint64"),
    Column("gaps", "int64"),
    Column("gaps_ns", "int64"),
    Column("longest_gap_ns", "int64"),
)
GAP_COLUMNS = (
    *_VM,
    Column("as_id", "int64"),
    Column("guest_phys_addr", "uint64"),
    Column("memory_size", "uint64"),
    Column("opened_line", "int64"),
    Column("closed_line", "int64"),
    Column("duration_ns", "int64"),
)


class Writer(Protocol):
    """Writes the rows of one table."""

    def write(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Appends rows."""

    def close(self) -> None:
        """Writes what is left, and closes the file."""


class CsvWriter:
    """Writes a table as CSV: RFC 4180, UTF-8, a line of names first; None is an empty field."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(column.name for column in columns)

    def write(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Appends rows."""
        self._writer.writerows(rows)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class ParquetWriter:
    """Writes a table as Parquet. Raises TableError if there is no pyarrow."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        try:
            pyarrow = import_module("pyarrow")
            parquet = import_module("pyarrow.parquet")
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] != "pyarrow":
                raise
            raise TableError(PARQUET_MISSING) from None
        self._table = pyarrow.table
        types = ((column.name, getattr(pyarrow, column.type)()) for column in columns)
        self._schema = pyarrow.schema(types)
        self._rows: list[Sequence[Cell]] = []
        # pyarrow's own message for a file that cannot be made has no errno.
        self._file = path.open("wb")
        self._writer = parquet.ParquetWriter(self._file, self._schema)

    def write(self, rows: Sequence[Sequence[Cell]]) -> None:
        """Appends rows."""
        self._rows += rows
        if len(self._rows) >= ROWS:
            self._flush()

    def close(self) -> None:
        """Writes the collected rows and the end of the file, and closes it."""
        try:
            self._flush()
            self._writer.close()
        finally:
            self._file.close()

    def _flush(self) -> None:
        if self._rows:
            columns = [list(column) for column in zip(*self._rows, strict=True)]
            self._rows = []
            self._writer.write_table(self._table(columns, schema=self._schema))


#: The formats: the ending of the files, and what writes them.
FORMATS: dict[str, Callable[[Path, Sequence[Column]], Writer]] = {
    "csv": CsvWriter,
    "parquet": ParquetWriter,
}


class Tables:
    """The tables of a replay, written to the places that `--csv` and `--parquet` name.

    The constructor opens all files, so that a place that cannot be written costs no replay. Each
    method raises TableError if a file cannot be written.
    """

    def __init__(self, places: dict[str, str]) -> None:
        self._vms: list[Writer] = []
        self._gaps: list[Writer] = []
        with ExitStack() as opened:
            for format, place in places.items():
                vms, gaps = paths(place, format)
                for path, columns, writers in (
                    (vms, VM_COLUMNS, self._vms),
                    (gaps, GAP_COLUMNS, self._gaps),
                ):
                    with _explained(path):
                        writers.append(FORMATS[format](path, columns))
                    opened.enter_context(_closed(path, writers[-1]))
            self._opened = opened.pop_all()

    def __enter__(self) -> Tables:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._opened.__exit__(kind, error, where)

    def add(self, report: Report) -> None:
        """Writes the rows of one input."""
        with _explained(None):
            for writer in self._vms:
                writer.write([_vm_row(report, at, vm) for at, vm in enumerate(report.vms, 1)])
            for writer in self._gaps:
                writer.write(list(_gap_rows(report)))


@contextmanager
def _explained(path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = path or "the tables"
        raise TableError(f"{where}: {error.strerror or error}") from error


@contextmanager
def _closed(path: Path, writer: Writer) -> Iterator[None]:
    """Closes `writer` at the end. After another error its own error is of no interest."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            writer.close()
        raise
    with _explained(path):
        writer.close()


def paths(place: str, format: str) -> tuple[Path, Path]:
    """Returns the files of the two tables: in the directory `place`, or with that prefix."""
    # pathlib's is_dir raises an error if one may not look.
    if place.endswith("/") or os.path.isdir(place):  # noqa: PTH112
        return Path(place, f"vms.{format}"), Path(place, f"gaps.{format}")
    return Path(f"{place}-vms.{format}"), Path(f"{place}-gaps.{format}")


def _vm_row(report: Report, number: int, vm: VmReport) -> list[Any]:
    gaps = vm.gaps
    times = [gap.duration_ns for gap in gaps if gap.duration_ns is not None]
    slots = vm.final_map
    return [
        _text(report.name),
        number,
        vm.name,
        _fitting(vm.process),
        _fitting(vm.fd),
        report.format,
        vm.calls,
        report.counts.lost_total,
        len(vm.disagreements),
        vm.refused.total(),
        len(slots),
        vm.most_slots,
        sum(slot.npages for slot in slots) << PAGE_SHIFT,
        len(gaps),
        _fitting(sum(times)) if times or not gaps else None,
        _fitting(max(times, default=None)),
    ]


def _gap_rows(report: Report) -> Iterator[list[Any]]:
    for number, vm in enumerate(report.vms, 1):
        for gap in vm.gaps:
            yield [_text(report.name), number, *_gap(gap)]


def _gap(gap: Gap) -> list[Any]:
    return [
        gap.as_id,
        gap.base_gfn << PAGE_SHIFT,
        gap.npages << PAGE_SHIFT,
        gap.opened_line,
        gap.closed_line,
        _fitting(gap.duration_ns),
    ]


def _fitting(value: int | None) -> int | None:
    """Returns a number of the trace, or None if it does not fit 64 bits: traces may be damaged."""
    return value if value is not None and -(1 << 63) <= value < 1 << 63 else None


def _text(name: str) -> str:
    """Returns a file's name with backslashes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()

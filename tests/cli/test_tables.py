"""Tests `memslots replay --csv` and `--parquet`."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
from commandline import OVMF_QEMU, PAGE, SEABIOS, Outcome, qemu

from memslots.cli import tables

OVMF = "qemu-q35-ovmf"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_say_what_the_json_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, disagreeing: str
) -> None:
    place = tmp_path / "fleet"
    files = [SEABIOS, OVMF_QEMU, disagreeing]
    outcome = Outcome(capsys, "replay", "--json", "--csv", str(place), *files)
    assert outcome.status == 1
    found = {(row["file"], row["vm"]): row for row in rows(tmp_path / "fleet-vms.csv")}
    gaps = rows(tmp_path / "fleet-gaps.csv")
    for report in json.loads(outcome.out)["files"]:
        for number, vm in enumerate(report["vms"], 1):
            row = found.pop((report["file"], str(number)))
            assert row["name"] == vm["vm"]
            assert int(row["calls"]) == vm["calls"]
            assert int(row["disagreements"]) == len(vm["disagreements"])
            assert int(row["refused"]) == sum(vm["refused"].values())
            assert int(row["slots"]) == len(vm["final_map"])
            assert int(row["most_slots"]) == vm["most_slots"]
            assert int(row["memory_size"]) == sum(slot["memory_size"] for slot in vm["final_map"])
            mine = [g for g in gaps if (g["file"], g["vm"]) == (report["file"], str(number))]
            assert int(row["gaps"]) == len(mine) == vm["gaps"]["all"]
            for gap, wanted in zip(mine, vm["gaps"]["ranges"], strict=True):
                assert hex(int(gap["guest_phys_addr"])) == wanted["guest_phys_addr"]
                for name in ("as_id", "memory_size", "opened_line", "closed_line"):
                    assert int(gap[name]) == wanted[name]
    assert not found


def test_times_and_a_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plain = Outcome(capsys, "replay", "--sample", OVMF)
    outcome = Outcome(capsys, "replay", "--sample", OVMF, "--csv", str(tmp_path))
    assert (outcome.status, outcome.out) == (0, plain.out)
    (vm,) = rows(tmp_path / "vms.csv")
    times = [int(gap["duration_ns"]) for gap in rows(tmp_path / "gaps.csv")]
    assert (int(vm["gaps_ns"]), int(vm["longest_gap_ns"])) == (sum(times), max(times))
    assert max(times) == 842_000


def test_parquet_is_the_csv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'memslots[fleet]'")
    places = ["--csv", str(tmp_path), "--parquet", str(tmp_path)]
    assert Outcome(capsys, "replay", *places, SEABIOS, OVMF_QEMU).status == 0
    for name, columns in (("vms", tables.VM_COLUMNS), ("gaps", tables.GAP_COLUMNS)):
        table = parquet.read_table(tmp_path / f"{name}.parquet")
        assert [(field.name, str(field.type)) for field in table.schema] == list(columns)
        as_text = [
            {key: "" if cell is None else str(cell) for key, cell in row.items()}
            for row in table.to_pylist()
        ]
        assert as_text == rows(tmp_path / f"{name}.csv")
        assert as_text


def test_many_rows_are_several_row_groups(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'memslots[fleet]'")
    monkeypatch.setattr(tables, "ROWS", 2)
    files = [SEABIOS, OVMF_QEMU, SEABIOS]
    Outcome(capsys, "replay", "--parquet", str(tmp_path), *files)
    vms = parquet.ParquetFile(tmp_path / "vms.parquet")
    assert vms.num_row_groups == 2
    assert vms.read().column("file").to_pylist() == files


def test_numbers_that_do_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'memslots[fleet]'")
    log = tmp_path / "odd"
    calls = [qemu(0, 0, 0x10000), qemu(0, 0, 0), qemu(0, 0, 0x10000)]
    seconds = ["1", "1", "99999999999999999999"]
    tid = "9" * 20
    log.write_text("".join(f"{tid}@{s}.0:{c}" for s, c in zip(seconds, calls, strict=True)))
    places = ["--csv", str(tmp_path), "--parquet", str(tmp_path)]
    outcome = Outcome(capsys, "replay", *places, str(log))
    assert outcome.status == 0, outcome.err
    (vm,) = rows(tmp_path / "vms.csv")
    assert (vm["process"], vm["calls"]) == ("", "3")
    assert vm["longest_gap_ns"] == ""


def test_a_name_that_is_not_utf8(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'memslots[fleet]'")
    log = tmp_path / "log\udcff"
    log.write_text(qemu(0, 0, 0x10000))
    places = ["--csv", str(tmp_path), "--parquet", str(tmp_path)]
    Outcome(capsys, "replay", "--json", *places, str(log))
    assert rows(tmp_path / "vms.csv")[0]["file"].endswith("log\\udcff")


def test_an_input_that_cannot_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outcome = Outcome(capsys, "replay", "--csv", str(tmp_path), str(tmp_path / "none"), SEABIOS)
    assert outcome.status == 2
    assert [row["file"] for row in rows(tmp_path / "vms.csv")] == [SEABIOS]


def test_without_pyarrow(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    outcome = Outcome(capsys, "replay", "--parquet", str(tmp_path), SEABIOS)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == ("memslots: --parquet needs pyarrow: pip install 'memslots[fleet]'\n")


@pytest.mark.parametrize("option", ["--csv", "--parquet"])
def test_a_place_that_cannot_be_written(
    option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if option == "--parquet":
        pytest.importorskip("pyarrow", reason="pip install 'memslots[fleet]'")
    outcome = Outcome(capsys, "replay", option, str(tmp_path / "none" / "x"), SEABIOS)
    assert (outcome.status, outcome.out) == (2, "")
    ending = option[2:]
    assert outcome.err == f"memslots: {tmp_path}/none/x-vms.{ending}: No such file or directory\n"


def test_a_full_disk(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (tmp_path / "x-vms.csv").symlink_to("/dev/full")
    outcome = Outcome(capsys, "replay", "--csv", str(tmp_path / "x"), SEABIOS)
    assert outcome.status == 2
    assert outcome.err == f"memslots: {tmp_path}/x-vms.csv: No space left on device\n"


def test_the_page_has_every_column() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("### Tables of many traces")[2]
    text = text.partition("### Exit status")[0]
    cells = re.findall(r"^\| (`[^|]*)\|", text, re.MULTILINE)
    found = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    vms = [column.name for column in tables.VM_COLUMNS]
    assert found == [*vms, *(column.name for column in tables.GAP_COLUMNS)]

"""Tests `memslots replay --dask`: a cluster makes the same report, also if workers die."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commandline import OVMF_QEMU, SEABIOS, Outcome, qemu

from memslots.cli import fleet

#: Seconds after which a test is wrong rather than slow.
LONG = 120.0


@contextmanager
def cluster(workers: int, allowed_failures: int = 3) -> Iterator[Any]:
    """Yields a cluster of processes on this machine. It starts another for one that dies."""
    reason = "there is no dask: pip install 'memslots[fleet]'"
    distributed = pytest.importorskip("distributed", reason=reason)
    import dask

    root = str(Path(__file__).parents[2])
    settings = {
        "distributed.scheduler.allowed-failures": allowed_failures,
        "distributed.nanny.environ": {"PYTHONPATH": os.pathsep.join([root, *sys.path])},
        "distributed.worker.memory.terminate": False,
        "distributed.comm.timeouts.connect": "5s",
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=50,
        ) as made,
    ):
        yield made


def within(seconds: float, ready: Callable[[], Any]) -> Any:
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)
    return found


def kill_the_worker_of(address: str) -> None:
    """Kills the process of a worker that has a task which does not end, and waits for its end."""
    import distributed

    with distributed.Client(address, set_as_default=False) as client:

        def busy() -> int | None:
            if len(working := [name for name, tasks in client.processing().items() if tasks]) != 1:
                return None  # the tasks that end have not ended yet
            pids: dict[str, int] = client.run(os.getpid)
            return pids.get(working[0])

        pid = within(LONG, busy)
        process = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            # Until then its files are open: what is written to a pipe would be lost with it.
            assert select.select([process], [], [], LONG)[0], "it does not end"
        finally:
            os.close(process)


def kill_and_write(address: str, pipe: Path, content: str) -> None:
    """Kills the worker that reads `pipe`, and writes for the next one."""
    try:
        kill_the_worker_of(address)
    finally:
        pipe.write_text(content)  # waits until the file is read, so that the command ends


def test_the_same_in_the_same_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("no trace\n")
    other = tmp_path / "other"
    other.write_text(qemu(0, 0, 0x10000) + qemu(1, 0x8000, 0x10000))
    none = str(tmp_path / "none")
    # Names that are relative to this directory, which need not be the workers'.
    files = [os.path.relpath(name) for name in (SEABIOS, str(bad), OVMF_QEMU, str(other), none)]
    with cluster(2) as made:
        for options in ([], ["--json"]):
            alone = Outcome(capsys, "replay", *options, *files)
            address = made.scheduler_address
            together = Outcome(capsys, "replay", "--dask", address, *options, *files)
            assert (together.status, together.out) == (alone.status, alone.out)
            assert together.err == alone.err
            assert together.status == 2


def test_a_worker_dies_and_the_other_takes_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # the task that reads it goes on when the test writes
    files = [str(pipe), SEABIOS, OVMF_QEMU]
    with cluster(2) as made, ThreadPoolExecutor(1) as others:
        address = made.scheduler_address
        killing = others.submit(kill_and_write, address, pipe, qemu(0, 0, 0x10000))
        outcome = Outcome(capsys, "replay", "--dask", address, *files)
        killing.result(LONG)
    assert (outcome.status, outcome.err) == (0, "")
    names = [line for line in outcome.out.splitlines() if line.endswith((": strace", ": qemu"))]
    assert names == [f"{pipe}: qemu", f"{SEABIOS}: strace", f"{OVMF_QEMU}: qemu"]


def test_a_file_whose_workers_die_is_reported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with cluster(2, allowed_failures=0) as made, ThreadPoolExecutor(1) as others:
        address = made.scheduler_address
        killing = others.submit(kill_the_worker_of, address)
        outcome = Outcome(capsys, "replay", "--dask", address, str(pipe), SEABIOS)
        killing.result(LONG)
    assert outcome.status == 2
    assert outcome.err == (
        f"memslots: {pipe}: its task on the dask cluster was on 1 worker that died\n"
    )
    assert f"{SEABIOS}: strace" in outcome.out


def test_no_worker(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "PATIENCE", 0.5)
    with cluster(0) as made:
        outcome = Outcome(capsys, "replay", "--dask", made.scheduler_address, SEABIOS, OVMF_QEMU)
    assert (outcome.status, outcome.out) == (2, "")
    reason = "the dask cluster has had no worker for 0.5 seconds"
    assert outcome.err == "".join(f"memslots: {n}: {reason}\n" for n in (SEABIOS, OVMF_QEMU))


def test_a_scheduler_that_goes_away(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with cluster(1) as made, ThreadPoolExecutor(1) as others:

        def close() -> None:
            within(LONG, lambda: any(ws.processing for ws in made.scheduler.workers.values()))
            made.close()

        closing = others.submit(close)
        files = [str(pipe), SEABIOS]
        outcome = Outcome(capsys, "replay", "--dask", made.scheduler_address, *files)
        closing.result(LONG)
    assert (outcome.status, outcome.out) == (2, "")
    for name, line in zip(files, outcome.err.splitlines(), strict=True):
        told, _, reason = line.partition(f"memslots: {name}: ")
        assert not told
        assert reason in (
            "its task on the dask cluster was cancelled",
            "the dask scheduler is gone",
        )


def test_no_scheduler(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="there is no dask: pip install 'memslots[fleet]'")
    monkeypatch.setattr(fleet, "CONNECTING", 0.5)
    for address in ("tcp://127.0.0.1:1", "nonsense://127.0.0.1:1", "127.0.0.1"):
        outcome = Outcome(capsys, "replay", "--dask", address, SEABIOS)
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err.startswith(f"memslots: no dask scheduler at {address}: ")


def test_without_dask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    outcome = Outcome(capsys, "replay", "--dask", "tcp://127.0.0.1:1", SEABIOS)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == "memslots: --dask needs dask: pip install 'memslots[fleet]'\n"


@pytest.mark.parametrize("options", [["--jobs", "2", SEABIOS], ["--kvm", SEABIOS], ["-"]])
def test_what_does_not_go_with_it(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "replay", "--dask", "tcp://127.0.0.1:1", *options)
    assert outcome.status == 2
    assert "--dask takes FILEs" in outcome.err

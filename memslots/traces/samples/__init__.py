"""Traces of real virtual machines that ship with the package, complete and compressed.

All traces are of QEMU 7.2 on KVM of Linux 6.18.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import BinaryIO, cast


@dataclass(frozen=True, slots=True)
class Sample:
    """A trace by name: its file in this package, its format, and what it shows."""

    name: str
    file: str
    format: str
    about: str

    def open(self) -> BinaryIO:
        """Returns the compressed content as a binary stream."""
        return cast(BinaryIO, files(__name__).joinpath(self.file).open("rb"))


SAMPLES = {
    sample.name: sample
    for sample in (
        Sample(
            "qemu-pc-seabios",
            "qemu-pc-seabios.strace.xz",
            "strace",
            "pc machine, 256 MiB, SeaBIOS: strace -f -e trace=ioctl, thousands of other calls",
        ),
        Sample(
            "qemu-q35-ovmf",
            "qemu-q35-ovmf.strace.xz",
            "strace",
            "q35 machine, 512 MiB, UEFI firmware: strace -f -ttt -y, with times",
        ),
        Sample(
            "qemu-pc-hotplug",
            "qemu-pc-hotplug.qemu-trace.xz",
            "qemu",
            "pc machine, 60 DIMMs plugged, dirty logging on and off: QEMU's own trace",
        ),
    )
}

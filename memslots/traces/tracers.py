"""Memslot calls as tracers other than strace print them: ltrace, ftrace, perf, bpftrace.

They print the number of the request and the address of the struct, but not the struct. So their
calls are only counted as lost.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from memslots.traces.strace_inner import ARGUMENT_NAME, Quotes

#: The numbers of the requests, 0x4020ae46 and 0x40a0ae49, in decimal.
DECIMAL = ("1075883590", "1084272201")
_NUMBER = re.compile(
    rf"(?<![\w.-])(?:(?P<hex>(?:0x0*)?(?:4020ae46|40a0ae49))|{'|'.join(DECIMAL)})(?!\w)"
)
#: In front of the number: a call as strace prints it, too. Or the name of the call, or a system
#: call's number (of raw_syscalls), or audit's name of the second argument. QEMU's event
#: kvm_vm_ioctl is no call: its event kvm_set_user_memory has the struct.
_AS_STRACE = re.compile(
    rf"(?<!\w)ioctl\({ARGUMENT_NAME}(?:-?\d+|0x[0-9a-f]+)(?:<[^\"]*>)?, {ARGUMENT_NAME}\Z"
)
_CALLED = re.compile(r"\b(?:\w*[sS][yY][sS]\w*_)?ioctl\b|\bNR \d{1,4} \(|\ba1=")
_ADDRESS = re.compile(r"[^\w\n]+(?:(?:arg|a2)\W+)?(?:0x)?0*(\w*)")
_LONGEST = 200  # characters from the name of a call to the number


class OtherTracers:
    """Finds the calls in the lines of one trace."""

    def __init__(self) -> None:
        # How often each call was printed: ltrace -S prints a call of a library and its system
        # call, and ftrace prints sys_enter_ioctl beside sys_enter.
        self._printed: defaultdict[tuple[bool, str], Counter[str]] = defaultdict(Counter)

    def has_call(self, text: str) -> bool:
        """Returns whether a line has a memslot call that no other line has."""
        if "0ae4" not in text and not any(number in text for number in DECIMAL):
            return False
        quotes = Quotes(text)
        for number in _NUMBER.finditer(text):
            before = text[max(0, number.start() - _LONGEST) : number.start()]
            if number["hex"] and _AS_STRACE.search(before):
                continue
            called = list(_CALLED.finditer(before))
            if not called or number.start() in quotes:
                continue
            address = _ADDRESS.match(text, number.end())
            which = number[0].endswith(("46", "90")), address[1] if address else ""
            name = called[-1][0]
            times = self._printed[which]
            times[name] += 1
            return all(times[name] > n for other, n in times.items() if other != name)
        return False

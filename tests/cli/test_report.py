"""`memslots report`: the page draws what the replay found."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import subprocess
import time
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from commandline import SEABIOS, Outcome, qemu

from memslots import Flags, MemslotError, Memslots
from memslots.cli import moments
from memslots.cli.replaying import replay_input
from memslots.cli.report import vm_document
from memslots.replay import errno_name
from memslots.traces.samples import SAMPLES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
DARK = "--blink-settings=preferredColorScheme=0"
CHANGES = {"C": "CREATE", "D": "DELETE", "M": "MOVE", "F": "FLAGS_ONLY"}


def written(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> dict[str, Any]:
    """Returns the data of the page."""
    outcome = Outcome(capsys, "report", *arguments, "-o", str(path))
    assert outcome.err == ""
    text = path.read_text()
    (data,) = re.findall(r'type="application/json">(.*?)</script>', text, re.DOTALL)
    document: dict[str, Any] = json.loads(data)
    assert text.count("</script>") == 2
    assert not re.search(r"https?://|src=|@import", text), "it needs no network"
    return document


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """The VMs of all files, as `replay --json` has them."""
    document = json.loads(Outcome(capsys, "replay", *arguments, "--json").out)
    return [vm for file in document["files"] for vm in file["vms"]]


def dumped(page: Path, *options: str) -> str:
    """The page as Chromium has it after all scripts."""
    assert CHROMIUM is not None
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", *options, "--dump-dom"]
    run = subprocess.run(
        [CHROMIUM, *arguments, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=page.parent,
        env={"HOME": str(page.parent), "PATH": "/usr/bin:/bin"},
    )
    assert "data-drawn" in run.stdout, run.stderr[-2000:]
    return run.stdout


def answered(page: Path, script: str, *options: str) -> Any:
    """The value of a script's body, which runs in a copy of the page as its last script."""
    copy = page.with_name(f"asked-{page.name}")
    asked = (
        "let answer;"
        "try { answer = (() => {%s})(); } catch (error) { answer = String(error.stack); }"
        "document.documentElement.dataset.answer = encodeURIComponent(JSON.stringify(answer));"
    )
    helpers = """
        const rowsOf = name => [...document.querySelectorAll(`table.${name} tbody tr`)]
            .map(row => [...row.cells].map(cell => cell.textContent));
        const key = (target, name, more) =>
            target.dispatchEvent(new KeyboardEvent("keydown", { key: name, ...more }));
    """
    text = page.read_text()
    ending = f"<script>{{ {helpers} {asked % script} }}</script></body>"
    copy.write_text(text.replace("</body>", ending))
    found = re.search(r'data-answer="([^"]*)"', dumped(copy, *options))
    assert found is not None
    return json.loads(unquote(found[1]))


def made_trace(seed: int, calls: int, machines: int = 1, begin: int = 1_700_000_000) -> str:
    """A trace of strace -ttt -T: VMs at fd 8 of processes 7, 8, ..., with results by the rules."""
    source = random.Random(seed)
    vms = [Memslots(address_spaces=2) for _ in range(machines)]
    created = f"{begin}.000001 ioctl(3, KVM_CREATE_VM, 0) = 8 <0.0001>"
    lines = [f"{7 + n} {created}" for n in range(machines)]
    for number in range(calls):
        which = source.randrange(machines)
        space, id = source.choice([0, 0, 1]), source.randrange(6)
        old = vms[which].address_space(space).get(id)
        gpa, size = source.randrange(24) << 16, source.randrange(1, 4) << 16
        flags, hva = source.choice([0, 0, 1, 2, 3]), 0x7F00_0000_0000 + (id << 32)
        if old is not None:
            size = source.choice([0, old.memory_size, old.memory_size])
            gpa = source.choice([gpa, old.guest_phys_addr])
            if gpa != old.guest_phys_addr:
                flags = int(old.flags)
            elif source.random() < 0.7:
                flags = int(old.flags ^ Flags.LOG_DIRTY_PAGES)
        slot = space << 16 | id
        result = "0"
        try:
            vms[which].set_region(slot, flags, gpa, size, hva)
        except MemslotError as error:
            result = f"-1 {errno_name(error.errno or 0)} (Some text)"
        if source.random() < 0.05:
            lines.append(f"{7 + which} {begin + number}.5 ioctl(9, KVM_RUN, 0) = 0 <0.1>")
        took = source.randrange(1, 3000)
        lines.append(
            f"{7 + which} {begin + number}.{source.randrange(10**6):06} "
            f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags={flags}, "
            f"guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr={hva:#x}}}) "
            f"= {result} <0.{took:06}>"
        )
    return "\n".join(lines) + "\n"


def check_figures(drawn: dict[str, Any], vm: dict[str, Any]) -> None:
    """The data of a VM are those of `replay --json`."""
    done = vm["operations"]
    kinds = ("CREATE", "MOVE", "FLAGS_ONLY")
    assert len(drawn["spans"]) == sum(done.get(kind, 0) for kind in kinds)
    assert drawn["changes"] == sum(n for kind, n in done.items() if kind != "NONE")
    assert drawn["changes"] == len(drawn["lines"]) == len(drawn["kinds"])
    drawn_kinds = Counter(CHANGES[letter] for letter in drawn["kinds"])
    drawn_kinds.update(each["kind"] for each in drawn["unchanged"])
    assert drawn_kinds.total() == vm["calls"]
    del drawn_kinds["left out"]
    assert drawn_kinds == Counter({**done, **vm["refused"]})
    open_at_the_end = {
        (span["space"], span["id"], hex(span["gfn"] << 12))
        for span in drawn["spans"]
        if not span["end"]
    }
    assert open_at_the_end == {
        (slot["as_id"], slot["id"], slot["guest_phys_addr"]) for slot in vm["final_map"]
    }
    assert len(drawn["gaps"]) == vm["gaps"]["all"]
    if vm["times"] is None:
        assert drawn["costs"] is None
        return
    slowest = [{**each} for each in drawn["costs"]["slowest"]]
    for each in slowest:
        at = each.pop("from")
        line = max(n for n in (0, *drawn["lines"][:at]) if n <= each["line"])
        assert at == sum(n <= line for n in drawn["lines"])
    assert {**drawn["costs"], "slowest": slowest} == vm["times"]
    taken = [n for n in drawn["took"] if n] + [each["took"] for each in drawn["unchanged"]]
    assert (len(taken), sum(taken)) == (vm["times"]["calls"], vm["times"]["total_ns"])


@pytest.mark.parametrize("sample", SAMPLES)
def test_its_figures_are_those_of_replay(
    sample: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    document = written(capsys, tmp_path / "r.html", "--sample", sample)
    vms = replayed(capsys, "--sample", sample)
    assert vms
    for drawn, vm in zip(document["vms"], vms, strict=True):
        check_figures(drawn, vm)


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_of_several_machines_and_files(
    seed: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    paths = [str(tmp_path / f"{n}.strace") for n in range(2)]
    for n, path in enumerate(paths):
        Path(path).write_text(made_trace(seed * 2 + n, 120, machines=1 + n))
    document = written(capsys, tmp_path / "r.html", *paths)
    assert [vm["file"] for vm in document["vms"]] == [0, 1, 1]
    assert document["files"] == paths
    for drawn, vm in zip(document["vms"], replayed(capsys, *paths), strict=True):
        check_figures(drawn, vm)
        assert vm["times"]["calls"] == vm["calls"]
        assert drawn["unchanged"], "some calls are refused"
    assert document["summary"] == "240 calls, 0 lost, 3 VMs, 0 disagreements."


def test_a_call_that_returned_after_a_later_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A moment is a number of changes in the order of their results, not of their lines."""
    call = (
        "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=%d, flags=0, guest_phys_addr=%#x, "
        "memory_size=4096, userspace_addr=0x7f0000000000}"
    )
    path = tmp_path / "trace"
    path.write_text(
        "7 clone(child_stack=NULL, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 9\n"
        f"7 {call % (0, 0)} <unfinished ...>\n"
        f"9 {call % (1, 0x10000)}) = 0 <0.000002>\n"
        f"7 <... ioctl resumed>) = 0 <0.000009>\n"
    )
    (vm,) = written(capsys, tmp_path / "r.html", str(path))["vms"]
    assert vm["lines"] == [3, 2]
    assert [(s["id"], s["line"], s["from"]) for s in vm["spans"]] == [(1, 3, 1), (0, 2, 2)]
    assert [(each["line"], each["from"]) for each in vm["costs"]["slowest"]] == [(2, 2), (3, 1)]


def test_disagreements_and_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a <b> & c.log"
    path.write_text(qemu(0, 0, 0x10000) + qemu(1, 0x8000, 0x10000) + qemu(0, 0, 0, ret=-22))
    outcome = Outcome(capsys, "report", str(path), "-o", str(tmp_path / "r.html"))
    assert outcome.status == 1
    document = written(capsys, tmp_path / "r.html", str(path))
    assert document["name"].endswith("a <b> & c.log")
    (vm,) = document["vms"]
    assert [(d["line"], d["recorded"], d["ours"]) for d in vm["disagreements"]] == [
        (2, "success", "EEXIST"),
    ]
    assert [(s["id"], s["from"], s["to"], s["end"]) for s in vm["spans"]] == [
        (0, 1, 2, 2),
        (1, 2, 3, 0),
    ]
    assert [(u["at"], u["kind"], u["line"]) for u in vm["unchanged"]] == [(2, "EINVAL", 3)]


def test_what_cannot_be_written_or_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outcome = Outcome(capsys, "report", SEABIOS, "-o", str(tmp_path / "no" / "r.html"))
    assert outcome.status == 2
    assert "no such file" in outcome.err.lower()
    outcome = Outcome(capsys, "report", str(tmp_path / "none"), "-o", str(tmp_path / "r.html"))
    assert outcome.status == 2
    assert not (tmp_path / "r.html").exists()
    assert Outcome(capsys, "report", "-o", str(tmp_path / "r.html")).status == 2


def test_rearrangements_are_gaps_that_overlap() -> None:
    assert moments.rearrangements([]) == []
    # (went, back) of each gap: the first three overlap; the next begins with the next change.
    gaps = [(3, 4), (3, 7), (5, 9), (10, 11), (20, 30), (22, 23), (30, 31)]
    assert moments.rearrangements(reversed(gaps)) == [(2, 9), (9, 11), (19, 31)]


def test_each_gap_is_in_a_rearrangement(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for sample in SAMPLES:
        (vm,) = written(capsys, tmp_path / "r.html", "--sample", sample)["vms"]
        assert vm["rearranged"]
        for begin, last in vm["rearranged"]:
            inside = [gap for gap in vm["gaps"] if begin < gap["from"] and gap["to"] <= last]
            assert min(gap["from"] for gap in inside) == begin + 1
            assert max(gap["to"] for gap in inside) == last
        among = [
            [pair for pair in vm["rearranged"] if pair[0] < gap["from"] and gap["to"] <= pair[1]]
            for gap in vm["gaps"]
        ]
        assert {len(found) for found in among} == {1}


def rearranged_often(calls: int, slots: int) -> str:
    """A QEMU trace of `slots` slots, of which one after the other goes and comes back."""
    lines = [qemu(n, n << 24, 1 << 20, ua=0x7F00_0000_0000 + (n << 24)) for n in range(slots)]
    for number in range((calls - slots) // 2):
        n = number % slots
        place = (n, n << 24)
        lines += [qemu(*place, 0), qemu(*place, 1 << 20, ua=0x7F00_0000_0000 + (n << 24))]
    return "".join(lines)


@pytest.mark.parametrize(("slots", "expected"), [(10, 1000), (2000, 25)])
def test_plans_are_bounded(slots: int, expected: int, tmp_path: Path) -> None:
    """A hundred thousand calls have 50,000 rearrangements, and plans as far as the limits allow."""
    trace = tmp_path / "trace"
    trace.write_text(rearranged_often(100_000, slots))
    (vm,) = replay_input(str(trace), "auto", history=True).vms
    document = vm_document(vm)
    assert len(document["rearranged"]) == (100_000 - slots) // 2
    begun = time.process_time()
    found = moments.plans_document(vm, document["rearranged"])
    taken = time.process_time() - begun
    assert [pair[:2] for pair in found["pairs"]] == document["rearranged"][:expected]
    assert all(len(calls) == 0 for _, _, calls, _ in found["pairs"]), "what went came back"
    assert len(json.dumps(found)) < 200_000
    assert taken < 5


# --- in a browser


@needs_chromium
@pytest.mark.parametrize("sample", SAMPLES)
def test_in_a_browser(sample: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Every bar is drawn, and no script fails."""
    page = tmp_path / "r.html"
    document = written(capsys, page, "--sample", sample)
    text = dumped(page)
    found = re.search(r'data-drawn="(\d+)"', text)
    assert found is not None
    assert int(found[1]) == sum(len(vm["spans"]) for vm in document["vms"])
    rows = text.count("<tr data-x=")
    assert rows >= sum(len(vm["gaps"]) for vm in document["vms"])


def end_of(slot: dict[str, Any]) -> str:
    return hex(int(slot["guest_phys_addr"], 16) + slot["memory_size"])


def diff_rows(document: dict[str, Any]) -> list[list[str]]:
    """The slots of `diff --json`, in the cells of the page but for the sizes."""
    rows = []
    for space in document["spaces"]:
        for each in space["slots"]:
            cells = []
            for slot in (each["before"], each["after"]):
                if slot is not None:
                    place = [str(slot["id"]), slot["guest_phys_addr"], end_of(slot)]
                    cells.append([*place, slot["userspace_addr"], slot["flags"] or "-"])
            both = [
                first if first == last else f"{first} → {last}"
                for first, last in zip(cells[0], cells[-1], strict=True)
            ]
            rows.append([each["change"], str(space["as_id"]), *both])
    return rows


@needs_chromium
@pytest.mark.parametrize("name", [*SAMPLES, "made"])
def test_two_moments_differ_as_diff_says(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    map_name = f"sample:{name}"
    if name == "made":
        trace = tmp_path / "made.strace"
        trace.write_text(made_trace(11, 200))
        map_name = str(trace)
        (vm,) = written(capsys, page, map_name)["vms"]
    else:
        (vm,) = written(capsys, page, "--sample", name)["vms"]
    source = random.Random(name)
    pairs = [sorted(source.sample(range(1, vm["changes"] + 1), 2)) for _ in range(6)]
    if "F" in vm["kinds"]:
        at = vm["kinds"].index("F")
        pairs.append([at, at + 1])
    script = f"""
        return {json.dumps(pairs)}.map(([a, b], i) => {{
            pick(vms[0], 0, i % 2 ? a : b);
            pick(vms[0], 1, i % 2 ? b : a);
            return [rowsOf("diff"), rowsOf("calls")];
        }});
    """
    kinds: set[str] = set()
    for (a, b), (slots, calls) in zip(pairs, answered(page, script), strict=True):
        first, second = (f"{map_name}:{vm['lines'][n - 1]}" for n in (a, b))
        expected = diff_rows(json.loads(Outcome(capsys, "diff", first, second, "--json").out))
        assert [[*row[:5], *row[6:]] for row in slots] == expected
        kinds |= {row[0] for row in slots}
        unchanged = [u for u in vm["unchanged"] if a < u["at"] <= b]
        lines = [*vm["lines"][a:b], *(u["line"] for u in unchanged)]
        assert [int(row[0]) for row in calls] == sorted(lines)
        named = [CHANGES[letter] for letter in vm["kinds"][a:b]]
        named += [u["kind"] for u in unchanged]
        assert Counter(row[1] for row in calls) == Counter(named)
    if name == "made":
        assert kinds == set(CHANGES.values())


@needs_chromium
@pytest.mark.parametrize("name", [*SAMPLES, "made"])
def test_two_moments_have_the_plan_that_plan_makes(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    map_name = f"sample:{name}"
    if name == "made":
        map_name = str(tmp_path / "a trace.strace")
        Path(map_name).write_text(made_trace(11, 40))
        (vm,) = written(capsys, page, map_name)["vms"]
    else:
        (vm,) = written(capsys, page, "--sample", name)["vms"]
    planned = [pair[:2] for pair in vm["plans"]["pairs"]]
    changes = vm["changes"]
    if changes * (changes + 1) // 2 <= moments.MOST_PLANS:
        everything = [list(pair) for pair in combinations(range(changes + 1), 2)]
        assert sorted(planned) == everything
    pairs = [*vm["rearranged"], [0, changes], *random.Random(name).sample(planned, 8)]
    script = f"""
        return {json.dumps(pairs)}.map(([a, b]) => {{
            pick(vms[0], 0, b);
            pick(vms[0], 1, a);
            return [rowsOf("plan"), rowsOf("windows")];
        }});
    """
    absent = 0
    for pair, (calls, windows) in zip(pairs, answered(page, script), strict=True):
        lines = [vm["lines"][n - 1] if n else 0 for n in pair]
        first, second = (f"{map_name}:{line}" for line in lines)
        text = Outcome(capsys, "plan", first, second).out
        rows = [line.split() for line in text.splitlines() if re.match(r" *\d+ +[A-Z]", line)]
        expected = [[*row[1:6], f"{row[6]} {row[7]}", *row[8:]] for row in rows]
        # The page has one number for all address spaces.
        assert calls == [[str(number), *row] for number, row in enumerate(expected)]
        gone = re.findall(r"gpa \[(\w+), (\w+)\), (.*)$", text, re.MULTILINE)
        assert [tuple(row[1:4]) for row in windows] == gone
        absent += len(gone)
    assert absent > 0


@needs_chromium
def test_rearrangements_and_moments_without_a_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace, page = tmp_path / "it's a trace", tmp_path / "r.html"
    trace.write_text(made_trace(3, 400, machines=2))
    first, vm = written(capsys, page, str(trace))["vms"]
    assert first["changes"] > 44
    planned = {tuple(pair[:2]) for pair in vm["plans"]["pairs"]}
    (a, b) = next(
        pair for pair in combinations(range(1, vm["changes"] + 1), 2) if pair not in planned
    )
    script = f"""
        const rows = rowsOf("rearranged");
        document.querySelector("table.rearranged tbody tr").click();
        const picked = vms[0].picked, calls = rowsOf("plan").length;
        pick(vms[1], 0, {a});
        pick(vms[1], 1, {b});
        const command = vms[1].box.querySelector("code").textContent;
        return [rows, picked, calls, command];
    """
    rows, picked, calls, command = answered(page, script)
    both = first["rearranged"] + vm["rearranged"]
    assert picked == both[0]
    assert [int(row[1].split()[0]) for row in rows] == [last - begin for begin, last in both]
    assert calls == len(next(each[2] for each in first["plans"]["pairs"] if each[:2] == picked))
    line, other = vm["lines"][a - 1], vm["lines"][b - 1]
    words = shlex.split(command)
    assert words == ["memslots", "plan", "--vm", "2", f"{trace}:{line}", f"{trace}:{other}"]
    assert Outcome(capsys, *words[1:]).status == 0


@needs_chromium
def test_moments_are_picked_by_pointer_keys_numbers_and_address(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    (vm,) = written(capsys, page, "--sample", "qemu-q35-ovmf")["vms"]
    script = """
        const canvas = views[0].canvas, vm = vms[0], found = {};
        const click = (n, shiftKey) => {
            const box = canvas.getBoundingClientRect(), clientX = box.left + views[0].X(n + .5) + 1;
            const place = { clientX, clientY: box.top + 50, shiftKey };
            for (const kind of ["pointerdown", "pointerup"])
                canvas.dispatchEvent(new PointerEvent(kind, place));
        };
        const now = () =>
            [...vm.picked, rowsOf("diff").length, rowsOf("calls").length, location.hash];
        found.none = now();
        click(3, false);
        found.one = [...now(), rowsOf("map").length, vm.box.textContent];
        click(9, true);
        found.click = now();
        click(5, true);
        found.again = now();
        key(canvas, "Escape");
        found.cleared = now();
        key(canvas, "Home"); key(canvas, "."); key(canvas, "."); key(canvas, "Enter");
        key(canvas, ">"); key(canvas, ","); key(canvas, "Enter", { shiftKey: true });
        found.keys = now();
        found.said = vm.said.textContent;
        key(canvas, "End"); key(canvas, "Enter", { shiftKey: true });
        found.end = now();
        vm.inputs[0].value = "0"; vm.inputs[0].dispatchEvent(new Event("change"));
        found.number = now();
        vm.inputs[1].value = "999"; vm.inputs[1].dispatchEvent(new Event("change"));
        found.large = [...now(), vm.inputs[1].value];
        location.hash = "#vm0=4-6"; pickFromAddress();
        found.address = now();
        const drag = (kind, clientX) =>
            canvas.dispatchEvent(new PointerEvent(kind, { clientX, clientY: 50 }));
        key(canvas, "Escape"); key(canvas, "+");
        found.zoom = [vm.zoom.from, vm.zoom.to];
        key(canvas, "0"); key(canvas, "Home"); key(canvas, "+");
        found.zoomHome = vm.zoom.from;
        location.hash = "#vm0=4-6"; pickFromAddress();
        zoom(vm, .2, 10);
        const from = vm.zoom.from;
        drag("pointerdown", 300); drag("pointermove", 200); drag("pointerup", 200);
        found.drag = [vm.zoom.from > from, ...now()];
        return found;
    """
    found = answered(page, script)
    assert found["none"] == [None, None, 0, 0, ""]
    assert found["one"][:5] == [3, None, 0, 0, "#vm0=3-"]
    assert found["one"][5] == sum(s["from"] <= 3 < s["to"] for s in vm["spans"])
    assert f"after line {vm['lines'][2]}" in found["one"][6]
    assert found["click"][:2] == [3, 9]
    assert found["click"][3:] == [6, "#vm0=3-9"]
    assert found["again"][:2] == [3, 5]
    assert found["cleared"][:4] == found["none"][:4]
    assert found["keys"][:2] == [2, 11]
    assert found["keys"][3:] == [9, "#vm0=2-11"]
    assert found["said"].startswith(f"moment 11, after line {vm['lines'][10]}: ")
    assert found["end"][:2] == [2, 21]
    assert found["number"][:4] == [0, 21, 5, 21], "all slots came, all calls are in between"
    assert found["large"][:2] == [0, 21]
    assert found["large"][-1] == "21"
    assert found["address"][:2] == [4, 6]
    low, high = found["zoom"]
    assert (low + high) / 2 == pytest.approx(11), "without a cursor the middle stays"
    assert 0 < low < 4
    assert found["zoomHome"] < low
    assert found["drag"][:3] == [True, 4, 6]


@needs_chromium
def test_several_machines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first.strace", tmp_path / "second.strace"
    first.write_text(made_trace(1, 150, machines=2))
    second.write_text(made_trace(2, 90, begin=1_800_000_000))
    page = tmp_path / "r.html"
    document = written(capsys, page, str(first), str(second))
    script = """
        const choice = document.getElementById("link"), side = document.getElementById("side");
        const found = { ways: [...choice.options].map(option => option.value), zooms: {} };
        found.titles = [...document.querySelectorAll("section h2")].map(each => each.textContent);
        for (const way of found.ways) {
            linked = "";
            vms.forEach(vm => move(vm, 0, vm.last));
            choice.value = way;
            choice.dispatchEvent(new Event("change"));
            zoom(vms[0], .3, 20);
            found.zooms[way] = vms.map(vm => [vm.zoom.from, vm.zoom.to, vm.last]);
        }
        side.click();
        found.places = [...document.querySelectorAll("section")].map(part => {
            const box = part.getBoundingClientRect();
            return [box.left, box.top];
        });
        found.costs = rowsOf("kinds");
        found.slowest = rowsOf("slowest");
        return found;
    """
    found = answered(page, script, "--window-size=1600,900")
    assert found["ways"] == ["", "change", "line", "time"]
    assert [title.split(",")[0] for title in found["titles"]] == [str(first)] * 2 + [str(second)]
    zooms = found["zooms"]
    for way in zooms:
        for low, high, last in zooms[way]:
            assert 0 <= low < high <= last
        assert zooms[way][0][:2] == pytest.approx(zooms[""][0][:2])
    for low, high, last in zooms[""][1:]:
        assert (low, high) == (0, last), "each by itself"
    assert [zoom[:2] for zoom in zooms["change"]] == [pytest.approx(zooms[""][0][:2])] * 3
    assert zooms["line"][2] == zooms[""][2], "lines of another file are no common axis"

    def at(vm: dict[str, Any], axis: str, x: float) -> float:
        """The line, or the time since the file's first change, at x."""
        whole = int(x)
        values = [0, *vm["lines"]]
        if axis == "time":
            of_file = [each for each in document["vms"] if each["file"] == vm["file"]]
            start = min(each["times"][0] for each in of_file)
            values = [0, *(time - start for time in vm["times"])]
        return float(values[whole] + (values[whole + 1] - values[whole]) * (x - whole))

    machines = document["vms"]
    for axis, which in (("line", 1), ("time", 1), ("time", 2)):
        for edge in (0, 1):
            wanted = at(machines[0], axis, zooms[axis][0][edge])
            assert at(machines[which], axis, zooms[axis][which][edge]) == pytest.approx(wanted)
    assert len({left for left, _ in found["places"]}) == 3, "side by side"
    assert len(found["costs"]) == sum(len(vm["costs"]["by_kind"]) for vm in machines)
    slowest = [each for vm in machines for each in vm["costs"]["slowest"]]
    assert [int(row[0]) for row in found["slowest"]] == [each["line"] for each in slowest]


@needs_chromium
def test_dark_light_and_print(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    written(capsys, page, "--sample", "qemu-q35-ovmf")
    script = """
        const seen = () => {
            const { width, height } = views[0].canvas;
            const data = views[0].canvas.getContext("2d").getImageData(0, 0, width, height).data;
            const colours = new Set();
            for (let i = 0; i < data.length; i += 4)
                if (data[i + 3] === 255) colours.add(data.slice(i, i + 3).join());
            return ["ram", "log", "rom", "gap"].filter(name => {
                const hex = colour(name).trim().slice(1);
                return colours.has(hex.match(/../g).map(part => parseInt(part, 16)).join());
            }).join();
        };
        const paper = () => getComputedStyle(document.body).backgroundColor + seen();
        const found = [paper()];
        dispatchEvent(new Event("beforeprint"));
        found.push(paper());
        dispatchEvent(new Event("afterprint"));
        found.push(paper());
        return found;
    """
    seen = "ram,log,rom,gap"
    white, dark = "rgb(255, 255, 255)" + seen, "rgb(21, 24, 28)" + seen
    assert answered(page, script) == [white] * 3
    assert answered(page, script, DARK) == [dark, white, dark]
    assert CHROMIUM is not None
    pdf = tmp_path / "r.pdf"
    options = ["--headless", "--no-sandbox", "--disable-gpu", DARK, f"--print-to-pdf={pdf}"]
    subprocess.run(
        [CHROMIUM, *options, page.as_uri()],
        capture_output=True,
        timeout=600,
        check=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert b"/Subtype /Image" in pdf.read_bytes(), "the bars are printed"


def many_calls(calls: int) -> str:
    """A QEMU trace of a guest that moves windows about: 200 slots that come and go."""
    source = random.Random(5)
    lines = [qemu(0, 0, 1 << 30)]
    held: dict[int, bool] = {}
    while len(lines) < calls:
        slot = source.randrange(1, 200)
        gpa = (1 << 32) + (slot << 24)
        held[slot] = not held.get(slot, False)
        size = source.randrange(1, 64) << 12 if held[slot] else 0
        lines.append(qemu(slot, gpa, size, ua=0x7F00_0000_0000 + gpa))
    return "".join(lines)


@needs_chromium
def test_a_hundred_thousand_calls(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A frame takes some tens of milliseconds; the limits leave room for a busy machine."""
    trace, page = tmp_path / "trace", tmp_path / "r.html"
    trace.write_text(many_calls(100_000))
    (vm,) = written(capsys, page, str(trace))["vms"]
    assert vm["changes"] == 100_000
    script = """
        const view = views[0], vm = vms[0], c = view.canvas.getContext("2d");
        const timed = task => {
            const times = [];
            for (let i = 0; i < 9; i++) {
                const begun = performance.now();
                task(i);
                c.getImageData(0, 0, 1, 1);  // waits for the drawing
                times.push(performance.now() - begun);
            }
            return Math.min(...times);
        };
        const found = { whole: timed(() => draw(view)) };
        found.drawn = view.drawn;
        place(vm, 50000, 300);
        found.near = timed(() => draw(view));
        found.drawnNear = view.drawn;
        pick(vm, 0, 10);
        found.pick = timed(i => pick(vm, 1, 99900 + i));
        found.calls = vm.box.textContent.match(/(\\d+) calls in between/)[1];
        found.rows = rowsOf("calls").length;
        found.loaded = performance.now();
        return found;
    """
    found = answered(page, script)
    print(found)
    assert (found["drawn"], found["calls"], found["rows"]) == (len(vm["spans"]), "99898", 2000)
    assert found["drawnNear"] < 1000
    assert found["whole"] < 250
    assert found["near"] < 100
    assert found["pick"] < 1000

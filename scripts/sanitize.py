#!/usr/bin/env python3
"""Run the tests of the C++ operators with AddressSanitizer and UndefinedBehaviorSanitizer watching the extension.

Needs g++ with its sanitizer runtimes; where there are none it says so and succeeds. The CPU kernels are built into a
folder of their own, beside the normal extension. An access out of bounds or after the end of its memory, an overflow of
a signed integer, a null pointer, an index that a std::vector does not have: each ends the tests with a report. Leaks
are not looked for: Python keeps most of its memory to the end. The first build takes some 100 s of processor time.
Arguments after `--` go to pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from emulator_build import ABSENT, find_ninja
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
TESTS = [
    *("layer_norms", "pack", "blend", "copies", "layer_table", "step_kernels", "step_table"),
    *("holes", "shapes", "fuzz_ops", "fuzz_tables"),
]
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-DTORCH_EXTENSION_NAME=_C", "-Wall"),
    *("-D_GLIBCXX_ASSERTIONS", SANITIZE),
]
# Aborted, Python prints where it was, too.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:strict_init_order=1:abort_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
}
# Reads one element too many of its first argument.
FAULT = "#include <cstdlib>\nint main(int n, char**) { int* x = (int*)std::calloc(n, 4); return x[n]; }\n"


def fail(message: str) -> NoReturn:
    sys.exit(f"sanitize: {message}")


def runtimes() -> list[str] | None:
    """What must be loaded before Python: the sanitizer's own library, and that of C++ exceptions, which it looks up."""
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        asked = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        path = Path(asked.stdout.strip())
        if asked.returncode or not path.is_absolute():
            return None
        found.append(str(path.resolve()))
    return found


def notices_a_fault() -> bool:
    """Whether a program with a read out of bounds can be built here, and is ended with a report."""
    with tempfile.TemporaryDirectory(prefix="grawa-sanitize-") as folder:
        source, program = Path(folder) / "fault.cpp", Path(folder) / "fault"
        source.write_text(FAULT)
        command = ["g++", *SANITIZE.split(), str(source), "-o", str(program)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return False
        ended = subprocess.run(
            [str(program)], env={**os.environ, **OPTIONS}, capture_output=True, text=True, check=False
        )
        return "heap-buffer-overflow" in ended.stderr


def build_file() -> str:
    """What ninja is to do."""
    includes = [ROOT / "csrc", *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    libraries = Path(torch.__file__).parent / "lib"
    sources = [*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "cpu").glob("*.cpp"), ROOT / "csrc" / ABSENT]
    lines = [
        f"flags = {' '.join(FLAGS)} -D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"includes = {' '.join(f'-I{include}' for include in includes)}",
        "rule compile",
        "  command = g++ $flags $includes -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = g++ $flags -shared $in -o $out -L{libraries} -Wl,-rpath,{libraries} "
        "-ltorch -ltorch_cpu -lc10 -ltorch_python",
    ]
    objects = {source: f"{source.relative_to(ROOT)}.o" for source in sorted(sources)}
    lines += [f"build {made}: compile {source}" for source, made in objects.items()]
    return "\n".join([*lines, f"build _C.so: link {' '.join(objects.values())}"]) + "\n"


def build(folder: Path, jobs: int) -> Path:
    """The extension with sanitizers; what has not changed is not built again."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(build_file())
    command = [find_ninja(), "-C", str(folder), f"-j{jobs}", "--quiet"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if finished.returncode:
        print(finished.stdout[-8000:], file=sys.stderr)
        fail("the extension cannot be built; the reason is above")
    return folder / "_C.so"


def run_tests(extension: Path, preloaded: Sequence[str], arguments: Sequence[str]) -> int:
    """The exit status of the tests."""
    tests = [f"tests/single/test_{name}.py" for name in TESTS]
    # Reports go past sys.stderr: what captures the process's own would lose them as it ends.
    command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "other_extension", "-p", "no:cacheprovider"]
    env = {
        **os.environ,
        **OPTIONS,
        "GRAWA_EXTENSION": str(extension),
        "LD_PRELOAD": ":".join(preloaded),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    return subprocess.run([*command, *tests, *arguments], cwd=ROOT, env=env, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("MAX_JOBS", os.cpu_count() or 2)), metavar="N")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="of pytest, after --")
    given = parser.parse_args()
    preloaded = runtimes()
    if preloaded is None or not notices_a_fault():
        print("sanitize: skipped, g++ here has no runtimes of AddressSanitizer and UndefinedBehaviorSanitizer")
        return
    start = time.monotonic()
    extension = build(ROOT / "build" / "sanitize", given.jobs)
    print(f"sanitize: built in {time.monotonic() - start:.0f} s", flush=True)
    if run_tests(extension, preloaded, given.arguments):
        fail("tests failed, or a sanitizer ended them: the report is above")
    print(f"sanitize: no fault found in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()

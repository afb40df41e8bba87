#!/usr/bin/env python3
"""Install Horovod with a current PyTorch into the Python that runs this script.

Horovod 0.28.1 is its newest release and comes as source only. Its build asks for C++14 where today's PyTorch
headers need C++17 (horovod issues 3996 and 4014), and for a CMake older than today's. This script fetches the
source package with pip, raises the standard in the unpacked copy, builds a wheel, keeps it in a cache, installs
it, and checks the result with an import and with `horovodrun --check-build`.

Data goes over Gloo on a CPU build of PyTorch, and over NCCL as well on a CUDA build. PyTorch must be installed
first. A build takes one to two minutes on two cores; a cached wheel installs in seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

VERSION = "0.28.1"
CXX_STANDARD = 17
BUILD_REQUIREMENTS = ["setuptools<81", "wheel", "packaging", "cmake>=3.18"]
RUNTIME_REQUIREMENTS = ["cloudpickle", "psutil", "pyyaml", "packaging", "cffi>=1.4.0", "numpy"]
COMPILER_VARIABLES = (
    "CXX",
    "CXXFLAGS",
    "LDFLAGS",
    "HOROVOD_CUDA_HOME",
    "HOROVOD_NCCL_HOME",
    "HOROVOD_BUILD_CUDA_CC_LIST",
)


def fail(message: str) -> NoReturn:
    sys.exit(f"install_horovod: {message}")


def pip(*arguments: str, env: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    finished = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if finished.returncode:
        print(finished.stdout[-8000:], file=sys.stderr)
        fail(f"`pip {' '.join(arguments)}` failed with exit code {finished.returncode}; its output stands above")


def compiler() -> str:
    return os.environ.get("CXX", "g++").split()[0]


def missing_prerequisites() -> list[str]:
    missing = []
    if shutil.which(compiler()) is None:
        missing.append(f"a C++17 compiler ({compiler()}; Debian/Ubuntu: apt-get install g++)")
    if shutil.which("make") is None:
        missing.append("make (Debian/Ubuntu: apt-get install make)")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        missing.append("the Python headers (Debian/Ubuntu: apt-get install python3-dev)")
    return missing


def torch_facts() -> dict[str, str | None]:
    """What the build depends on, asked in a process of its own so that a broken torch is reported, not raised."""
    probe = (
        "import json, torch; print(json.dumps(dict(version=torch.__version__, cuda=torch.version.cuda,"
        " abi=str(torch._C._GLIBCXX_USE_CXX11_ABI))))"
    )
    finished = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if finished.returncode:
        fail(
            f"PyTorch cannot be imported by {sys.executable}; install it first (pip install torch).\n{finished.stderr}"
        )
    facts: dict[str, str | None] = json.loads(finished.stdout.splitlines()[-1])
    return facts


def nccl_folder() -> Path | None:
    """The nvidia-nccl package that CUDA wheels of torch depend on, or HOROVOD_NCCL_HOME."""
    home = os.environ.get("HOROVOD_NCCL_HOME")
    if home:
        return Path(home)
    for root in {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}:
        folder = Path(root, "nvidia", "nccl")
        if (folder / "include" / "nccl.h").exists():
            return folder
    return None


def cuda_home() -> Path | None:
    for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            return Path(os.environ[name])
    if Path("/usr/local/cuda/bin/nvcc").exists():
        return Path("/usr/local/cuda")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    # nvcc on PATH may be a wrapper script: it knows its toolkit's root better than its own path does.
    dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    root = re.search(r"#\$ TOP=(.*)", dry_run.stderr)
    return Path(root.group(1).strip()).resolve() if root else Path(nvcc).resolve().parent.parent


def use_nccl(cuda: str | None, toolkit: Path | None, nccl: Path | None) -> bool:
    """Whether to build with NCCL when nothing is said: a CUDA wheel of torch is often met where no nvcc is."""
    lacking = [*([] if toolkit else ["CUDA toolkit"]), *([] if nccl else ["nccl.h"])]
    if cuda and lacking:
        print(
            f"torch is a CUDA build, but no {' and no '.join(lacking)} was found: Horovod is built with Gloo alone. "
            "Put nvcc on PATH (or set HOROVOD_CUDA_HOME, HOROVOD_NCCL_HOME) and give --nccl for GPU operations.",
            flush=True,
        )
    return cuda is not None and not lacking


def cuda_environment(toolkit: Path) -> dict[str, str]:
    """What any build for a CUDA PyTorch needs, whether GPU tensors go over NCCL or through host memory to Gloo."""
    architectures = os.environ.get("HOROVOD_BUILD_CUDA_CC_LIST", "70,80,90" if _toolkit_below_13(toolkit) else "80,90")
    headers = sorted(str(path) for path in Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/include"))
    return {
        "HOROVOD_CUDA_HOME": str(toolkit),
        "CUDA_HOME": str(toolkit),
        "HOROVOD_BUILD_CUDA_CC_LIST": architectures,
        "CUDAARCHS": architectures.replace(",", ";"),
        "CPATH": os.pathsep.join([*headers, os.environ.get("CPATH", "")]).rstrip(os.pathsep),
        "PATH": f"{toolkit / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


def nccl_environment(scratch: Path) -> dict[str, str]:
    folder, toolkit = nccl_folder(), cuda_home()
    if folder is None:
        fail("--nccl: no nccl.h found; install a CUDA build of PyTorch or set HOROVOD_NCCL_HOME")
    if toolkit is None:
        fail("--nccl: no CUDA toolkit found; put nvcc on PATH or set HOROVOD_CUDA_HOME")
    library = next(iter(sorted((folder / "lib").glob("libnccl.so*"))), None)
    if library is None:
        fail(f"--nccl: no libnccl.so in {folder / 'lib'}")
    links = scratch / "nccl"
    links.mkdir()
    (links / "libnccl.so").symlink_to(library)
    return {
        **cuda_environment(toolkit),
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_NCCL_INCLUDE": str(folder / "include"),
        "HOROVOD_NCCL_LIB": str(links),
        "HOROVOD_NCCL_LINK": "SHARED",
    }


def _toolkit_below_13(toolkit: Path) -> bool:
    version = subprocess.run([str(toolkit / "bin" / "nvcc"), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.", version)
    return found is not None and int(found.group(1)) < 13


def build_environment(arguments: argparse.Namespace, cuda: str | None, scratch: Path) -> dict[str, str]:
    flags = {
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_MPI" if arguments.mpi else "HOROVOD_WITHOUT_MPI": "1",
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
        "MAKEFLAGS": f"-j{os.cpu_count() or 2}",
        "LDFLAGS": f"{os.environ.get('LDFLAGS', '')} -Wl,-s".strip(),
    }
    if arguments.nccl:
        flags.update(nccl_environment(scratch))
    elif cuda and (toolkit := cuda_home()):
        flags.update(cuda_environment(toolkit))
    scripts = sysconfig.get_paths()["scripts"]
    path = f"{scripts}{os.pathsep}{flags.pop('PATH', os.environ['PATH'])}"
    return {**os.environ, **flags, "PATH": path}


def cache_key(arguments: argparse.Namespace, torch: dict[str, str | None]) -> str:
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout.splitlines()[:1]
    parts = {
        "horovod": VERSION,
        "script": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "python": sys.implementation.cache_tag,
        "machine": platform.machine(),
        "torch": torch,
        "compiler": version,
        "mpi": arguments.mpi,
        "nccl": arguments.nccl,
        "variables": {name: os.environ.get(name) for name in COMPILER_VARIABLES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def raise_standard(source: Path) -> None:
    """Set the C++ and CUDA standards of the unpacked source package, and leave debug symbols out of its build."""
    for file in (
        source / "CMakeLists.txt",
        source / "horovod/torch/CMakeLists.txt",
        source / "horovod/common/ops/cuda/CMakeLists.txt",
    ):
        text = file.read_text()
        text = re.sub(r"(CMAKE_(?:CXX|CUDA)_STANDARD) 1[14]\b", rf"\1 {CXX_STANDARD}", text)
        file.write_text(text.replace('-std=c++11")', f'-std=c++{CXX_STANDARD}")'))
    setup = source / "setup.py"
    setup.write_text(setup.read_text().replace("RelWithDebInfo", "Release"))


def build_wheel(arguments: argparse.Namespace, cuda: str | None, into: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix="horovod-build-") as folder:
        scratch = Path(folder)
        pip("install", "--quiet", *BUILD_REQUIREMENTS)
        env = build_environment(arguments, cuda, scratch)
        source_only = ["--no-deps", "--no-binary", "horovod", "--no-build-isolation"]
        pip("download", "--quiet", *source_only, "--dest", folder, f"horovod=={VERSION}", env=env)
        shutil.unpack_archive(str(scratch / f"horovod-{VERSION}.tar.gz"), folder)
        source = scratch / f"horovod-{VERSION}"
        raise_standard(source)
        pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(scratch / "dist"), str(source), env=env)
        built = next((scratch / "dist").glob("horovod-*.whl"))
        into.mkdir(parents=True, exist_ok=True)
        staged = into / f".{built.name}.{os.getpid()}"
        shutil.copy(built, staged)
        return staged.rename(into / built.name)


def is_installed(wheel: Path) -> bool:
    """Whether this very wheel is in place already (pip notes its hash): others may be running from it."""
    record = next(Path(sysconfig.get_paths()["platlib"]).glob(f"horovod-{VERSION}.dist-info/direct_url.json"), None)
    if record is None:
        return False
    origin: dict[str, Any] = json.loads(record.read_text())
    noted = origin.get("archive_info", {}).get("hash")
    return bool(noted == "sha256=" + hashlib.sha256(wheel.read_bytes()).hexdigest())


def check_build(nccl: bool) -> None:
    """Import it, and let `horovodrun --check-build` say what is in it."""
    imported = subprocess.run([sys.executable, "-c", "import horovod.torch"], capture_output=True, text=True)
    if imported.returncode:
        fail(f"`import horovod.torch` failed:\n{imported.stderr}")
    run = Path(sysconfig.get_paths()["scripts"], "horovodrun")
    checked = subprocess.run([str(run), "--check-build"], capture_output=True, text=True)
    expected = ["PyTorch", "Gloo", *(["NCCL"] if nccl else [])]
    absent = [name for name in expected if f"[X] {name}" not in checked.stdout]
    if checked.returncode or absent:
        said = f"says no {', '.join(absent)}" if absent else f"ended with exit code {checked.returncode}"
        fail(f"`horovodrun --check-build` {said}:\n{checked.stdout}{checked.stderr}")
    print(checked.stdout.strip())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    nccl_help = "GPU operations over NCCL (default: when PyTorch is a CUDA build and a toolkit is found)"
    parser.add_argument("--nccl", action=argparse.BooleanOptionalAction, default=None, help=nccl_help)
    parser.add_argument("--mpi", action="store_true", help="also build the MPI controller (needs mpicxx on PATH)")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "grawa_hvd", "wheels")
    cache_help = "where built wheels are kept (default: %(default)s)"
    parser.add_argument("--cache", type=Path, metavar="FOLDER", default=cache, help=cache_help)
    parser.add_argument("--rebuild", action="store_true", help="build even if the cache has a wheel")
    parser.add_argument("--wheel-only", metavar="FOLDER", type=Path, help="put the wheel in FOLDER, install nothing")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    missing = missing_prerequisites()
    if missing:
        fail("missing: " + "; ".join(missing))
    if arguments.mpi and shutil.which("mpicxx") is None:
        fail("--mpi: mpicxx is not on PATH (Debian/Ubuntu: apt-get install libopenmpi-dev)")
    torch = torch_facts()
    if arguments.nccl is None:
        arguments.nccl = use_nccl(torch["cuda"], cuda_home(), nccl_folder())

    folder = arguments.cache / cache_key(arguments, torch)
    wheel = next(iter(folder.glob("horovod-*.whl")), None)
    if wheel is None or arguments.rebuild:
        transports = "Gloo" + (" + NCCL" if arguments.nccl else "") + (" + MPI" if arguments.mpi else "")
        print(
            f"Building Horovod {VERSION} ({transports}) for torch {torch['version']}: one to two minutes ...",
            flush=True,
        )
        start = time.monotonic()
        wheel = build_wheel(arguments, torch["cuda"], folder)
        print(f"Built {wheel.name} in {time.monotonic() - start:.0f} s.", flush=True)
    else:
        print(f"Using the cached wheel {wheel.name}.", flush=True)

    if arguments.wheel_only:
        arguments.wheel_only.mkdir(parents=True, exist_ok=True)
        print(shutil.copy(wheel, arguments.wheel_only))
        return
    pip("install", "--quiet", *RUNTIME_REQUIREMENTS)
    if not is_installed(wheel):
        pip("install", "--quiet", "--no-deps", "--force-reinstall", str(wheel))
    check_build(arguments.nccl)


if __name__ == "__main__":
    main()

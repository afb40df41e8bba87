"""Build of the extension `grawa_hvd._C`: C++ always, CUDA when torch has it and nvcc is found, or with FORCE_CUDA=1."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

try:
    import torch
except ImportError:
    # pip's build isolation hides the environment that the extension is to run in, and a torch of its own would
    # not be binary compatible with it: build against the one that is installed.
    sys.path.append(sysconfig.get_paths()["platlib"])
    try:
        import torch
    except ImportError:
        sys.exit("grawa_hvd is built against the installed PyTorch, and none was found: install torch first")

from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).resolve().parent
ABSENT = "csrc/cuda/absent.cpp"  # in place of the kernels where there is no CUDA
# What the kernels are compiled for, as far as the toolkit knows it. Newer GPUs compile the PTX of the newest.
ARCHITECTURES = ["7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
CXX_FLAGS = ["-O3", "-std=c++17" if torch.__version__ < "2.12" else "-std=c++20", "-Wall", "-fvisibility=hidden"]
# at::parallel_for is header code: without OpenMP it compiles, and runs on one thread.
CXX_FLAGS += ["-fopenmp"]
# Else std::sqrt sets errno, and no loop with it is vectorised.
CXX_FLAGS += ["-fno-math-errno"]
# Python's own flags ask for debug information: 27 MB beside .7 MB of code, most of it of torch's headers.
CXX_FLAGS += ["-g0"]
LINK_FLAGS = ["-Wl,--strip-debug"]


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*{suffix}"))


def all_files() -> list[str]:
    """All that some build needs. An sdist has the sources of the build that made it, and what they are said to need."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file())


def with_cuda() -> bool:
    if os.environ.get("FORCE_CUDA") == "1":
        return True
    return torch.version.cuda is not None and CUDA_HOME is not None and bool(sources("cuda", ".cu"))


def known_architectures() -> str:
    """Those of the list that nvcc compiles for: CUDA 13 has dropped 7.0, CUDA 12 does not know 12.0 from the start."""
    nvcc = Path(CUDA_HOME or "/usr/local/cuda") / "bin" / "nvcc"
    listed = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout
    known = re.findall(r"compute_(\d+)(\d)\b", listed)
    return ";".join(name for name in ARCHITECTURES if tuple(name.split(".")) in known) + "+PTX"


def extension() -> CppExtension:
    cpp = sources("", ".cpp") + sources("cpu", ".cpp")
    common = {"include_dirs": [str(ROOT / "csrc")], "depends": all_files(), "extra_link_args": LINK_FLAGS}
    if not with_cuda():
        return CppExtension("grawa_hvd._C", [*cpp, ABSENT], extra_compile_args={"cxx": CXX_FLAGS}, **common)
    if not torch.cuda.is_available():  # else torch compiles for the GPUs it sees, which takes a fraction of the time
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", known_architectures())
    # The warning is about a header of torch; it stands on its own in no file of ours.
    flags = {
        "cxx": CXX_FLAGS,
        "nvcc": ["-O3", "--expt-relaxed-constexpr", "-lineinfo", "-Xcompiler=-Wno-interference-size"],
    }
    cuda = [name for name in sources("cuda", ".cpp") if name != ABSENT] + sources("cuda", ".cu")
    return CUDAExtension("grawa_hvd._C", cpp + cuda, extra_compile_args=flags, **common)


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})

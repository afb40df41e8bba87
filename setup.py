"""Build of the extension `grawa_hvd._C`: C++ always, CUDA when torch has it and nvcc is found, or with FORCE_CUDA=1."""

import os
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
CXX_FLAGS = ["-O3", "-std=c++17" if torch.__version__ < "2.12" else "-std=c++20", "-Wall", "-fvisibility=hidden"]
# at::parallel_for is header code: without OpenMP it compiles, and runs on one thread.
CXX_FLAGS += ["-fopenmp"]


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(f"*{suffix}"))


def with_cuda() -> bool:
    if os.environ.get("FORCE_CUDA") == "1":
        return True
    return torch.version.cuda is not None and CUDA_HOME is not None and bool(sources("cuda", ".cu"))


def extension() -> CppExtension:
    cpp = sources("", ".cpp") + sources("cpu", ".cpp")
    include = [str(ROOT / "csrc")]
    if not with_cuda():
        return CppExtension("grawa_hvd._C", cpp, include_dirs=include, extra_compile_args={"cxx": CXX_FLAGS})
    flags = {"cxx": [*CXX_FLAGS, "-DGRAWA_WITH_CUDA"], "nvcc": ["-O3", "--expt-relaxed-constexpr", "-lineinfo"]}
    return CUDAExtension("grawa_hvd._C", cpp + sources("cuda", ".cu"), include_dirs=include, extra_compile_args=flags)


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})

"""What is shipped: an sdist that can be built anywhere, a small extension, and no dependency that is not imported."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import grawa_hvd
from grawa_hvd import _C

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ["csrc", "grawa_hvd", "scripts/install_horovod.py"]
BESIDE = ["pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"]


def files(path: Path) -> list[Path]:
    """The files of the repository under a path: nothing that is built."""
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return [file for file in found if file.suffix not in (".so", ".pyc")]


def run(program: str) -> str:
    """What a new Python prints."""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of a copy of the sources, made as on a machine without nvcc; unpacked."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in (*PACKAGED, *BESIDE):
        for file in files(ROOT / name):
            target = folder / "source" / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    program = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    finished = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=folder / "source", env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    with tarfile.open(folder / finished.stdout.splitlines()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"grawa_hvd-{grawa_hvd.__version__}"


@pytest.fixture(scope="module")
def metadata(sdist: Path) -> Message:
    return Parser().parsestr((sdist / "PKG-INFO").read_text())


def test_an_sdist_has_every_source_and_header_without_nvcc_too(sdist: Path) -> None:
    wanted = {file.relative_to(ROOT) for name in (*PACKAGED, *BESIDE) for file in files(ROOT / name)}
    assert {file.suffix for file in wanted} >= {".h", ".cuh", ".cu", ".cpp", ".py", ".pyi", ".typed"}
    assert sorted(wanted - {file.relative_to(sdist) for file in files(sdist)}) == []


def test_the_version_stands_in_one_place(metadata: Message) -> None:
    assert metadata["Version"] == grawa_hvd.__version__
    known = [ROOT / "pyproject.toml", ROOT / "setup.py", *files(ROOT / "grawa_hvd"), *files(ROOT / "csrc")]
    assert [file.name for file in known if grawa_hvd.__version__ in file.read_text()] == ["__init__.py"]


def test_what_is_required_is_what_is_imported(metadata: Message) -> None:
    """What is not always needed is imported where it is used: an extra."""
    required = {re.split(r"[^\w-]", entry)[0]: entry for entry in metadata.get_all("Requires-Dist", [])}
    always = {name for name, entry in required.items() if "extra ==" not in entry}
    assert always == {"torch"}
    optional = {"horovod", "matplotlib", "networkx", "numpy", "psutil", "tqdm"}
    assert all("extra ==" in required[name] for name in (*optional, "curvlinops-for-pytorch"))
    imported = set()
    for file in (ROOT / "grawa_hvd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
            elif isinstance(node, ast.Import):
                imported.update(alias.name.partition(".")[0] for alias in node.names)
    assert imported - set(sys.stdlib_module_names) - {"grawa_hvd"} == {*always, *optional, "curvlinops"}


def test_the_extension_carries_no_debug_information() -> None:
    if _C.build_info()["cuda_architectures"]:
        pytest.skip("the GPU's code has line numbers of its own, for profilers")
    content = Path(_C.__file__).read_bytes()
    assert b".debug_info" not in content
    assert len(content) < 1e6


ALONE = (
    "import os, sys, torch, torch.distributed as dist, grawa_hvd\n"
    "os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='0', RANK='0', WORLD_SIZE='1')\n"
    "model = torch.nn.Linear(2, 2)\n"
    "def wrap(**options): return grawa_hvd.DistributedGrawaOptimizer(torch.optim.SGD(model.parameters()), **options)\n"
)


def test_horovod_is_not_imported_over_torch_distributed() -> None:
    told = run(
        ALONE + "dist.init_process_group('gloo')\n"
        "wrap().step()\n"
        "print('horovod' in sys.modules)\n"
        "dist.destroy_process_group()"
    )
    assert told.split() == ["False"]


def test_where_nothing_is_initialised_the_error_names_both_backends() -> None:
    told = run(ALONE + "try: wrap()\nexcept ValueError as error: print(error)")
    assert "hvd.init() under horovodrun" in told and "init_process_group() under torchrun" in told


def test_without_horovod_the_kernels_work_and_the_optimizer_says_what_to_install() -> None:
    told = run(
        "import sys; sys.modules['horovod'] = None\n"
        + ALONE
        + "print(torch.ops.grawa.layer_norms([torch.ones(4)]), grawa_hvd.LocalScores(), grawa_hvd.LGRAWA())\n"
        "try: wrap(process_set=object())\n"
        "except ImportError as error: print(error)\n"
    )
    assert "tensor([2.])" in told
    assert "grawa_hvd averages over Horovod" in told and "scripts/install_horovod.py" in told


def test_without_the_kernels_there_is_still_advice() -> None:
    told = run(
        "import runpy, sys; sys.modules['grawa_hvd._C'] = None; sys.argv = ['grawa_hvd']\n"
        "runpy.run_module('grawa_hvd', run_name='__main__')\n"
        "import grawa_hvd\n"
        "for name in ('ops', 'LocalScores', 'DistributedGrawaOptimizer'):\n"
        "    try: print(getattr(grawa_hvd, name))\n"
        "    except ImportError as error: print('asked for', name, error)\n"
    )
    assert f"grawa_hvd {grawa_hvd.__version__}" in told
    assert "The kernels cannot be loaded by this torch" in told
    assert told.count("asked for") == told.count("import of grawa_hvd._C halted") == 3

"""scripts/make_wheels.py and gpu_carried.py: which Python and packages, and what is unpacked where they arrive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import gpu_carried  # noqa: E402
import make_wheels  # noqa: E402


def fake_python(path: Path, version: str, has_headers: bool = True, code: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version} {has_headers}\nexit {code}\n")
    path.chmod(0o755)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return tmp_path


def test_python_is_found_on_path_and_else_among_those_of_pyenv(home: Path) -> None:
    of_pyenv = home / "pyenv" / "versions" / "9.9.1" / "bin" / "python9.9"
    fake_python(of_pyenv, "9.9")
    assert make_wheels.find_python("9.9") == (str(of_pyenv), "9.9")
    fake_python(home / "bin" / "python9.9", "9.9", code=1)  # as pyenv's own, where that version is not chosen
    assert make_wheels.find_python("9.9") == (str(of_pyenv), "9.9")
    fake_python(home / "bin" / "python9.9", "9.9")
    assert make_wheels.find_python("9.9") == (str(home / "bin" / "python9.9"), "9.9")
    assert make_wheels.find_python(str(of_pyenv)) == (str(of_pyenv), "9.9")


def test_why_no_python_will_do_is_told(home: Path) -> None:
    with pytest.raises(SystemExit, match="none on PATH or among those of pyenv"):
        make_wheels.find_python("9.9")
    fake_python(home / "bin" / "python9.9", "9.9", has_headers=False)
    with pytest.raises(SystemExit, match=r"python9\.9 has no Python\.h"):
        make_wheels.find_python("9.9")


def test_packages_that_are_carried_are_small_and_enough() -> None:
    wanted = " ".join(gpu_carried.small_requirements((ROOT / "pyproject.toml").read_text()))
    assert "numpy" not in wanted and "torch" not in wanted
    for name in ("cloudpickle", "psutil", "pytest-timeout", "ninja", "setuptools"):
        assert name in wanted


def make_wheel(folder: Path, name: str) -> Path:
    """A wheel of one empty module, made by hand so that nothing is fetched."""
    import zipfile  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{name}-1-py3-none-any.whl", f"{name}-1.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_only_what_is_missing_is_unpacked_and_builds_keep_apart(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "pytest")  # which this Python has, in a version that will do
    make_wheel(wheels, "pytest_timeout")  # and this in one that will not
    make_wheel(wheels, "grawa_made_up")
    make_wheel(wheels / "nccl", "horovod")
    site = gpu_carried.unpack(wheels, tmp_path / "site", ["pytest>=8.4", "pytest-timeout>=999"])
    assert (site / "small" / "grawa_made_up").is_dir() and (site / "small" / "pytest_timeout").is_dir()
    assert not (site / "small" / "pytest").exists()
    assert gpu_carried.has(site, gpu_carried.NCCL) and not gpu_carried.has(site, gpu_carried.GLOO)
    variables = gpu_carried.variables(site, gpu_carried.NCCL, tmp_path)
    assert variables["PYTHONPATH"].split(os.pathsep)[:3] == [str(tmp_path), str(site / "nccl"), str(site / "small")]
    where = "import horovod, grawa_made_up; print(horovod.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", where], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str(site / "nccl" / "horovod" / "__init__.py")
    assert not gpu_carried.imports(variables)  # this one has no horovod.torch


def test_wheels_for_another_python_are_refused_by_name(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "wheels" / "nccl", "horovod")
    wheel.rename(wheel.with_name("horovod-1-cp27-cp27m-manylinux_2_28_x86_64.whl"))
    with pytest.raises(SystemExit, match=r"nccl do not fit this Python"):
        gpu_carried.unpack(tmp_path / "wheels", tmp_path / "site", [])

"""scripts/: the set-up redoes what its inputs changed and nothing else, and says what is missing; nothing is built."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import install_horovod  # noqa: E402
import setup_environment  # noqa: E402

TORCH = {"version": "2.13.0+cpu", "cuda": None, "abi": "True"}


def build_choices(nccl: bool = False, mpi: bool = False) -> argparse.Namespace:
    return argparse.Namespace(nccl=nccl, mpi=mpi)


def test_cache_key_changes_with_what_a_build_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        install_horovod.cache_key(build_choices(), TORCH),
        install_horovod.cache_key(build_choices(), {**TORCH, "version": "2.12.0+cpu"}),
        install_horovod.cache_key(build_choices(nccl=True), TORCH),
    ]
    monkeypatch.setenv("CXXFLAGS", "-O1")
    keys.append(install_horovod.cache_key(build_choices(), TORCH))
    monkeypatch.delenv("CXXFLAGS")
    assert len(set(keys)) == 4
    assert install_horovod.cache_key(build_choices(), TORCH) == keys[0]


def test_cache_key_changes_with_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = install_horovod.cache_key(build_choices(), TORCH)
    other = tmp_path / "other-g++"
    other.write_text("#!/bin/sh\necho other 99\n")
    other.chmod(0o755)
    monkeypatch.setattr(install_horovod, "COMPILER_VARIABLES", ())  # so that its version alone makes the difference
    without_variables = install_horovod.cache_key(build_choices(), TORCH)
    monkeypatch.setenv("CXX", str(other))
    assert install_horovod.cache_key(build_choices(), TORCH) not in (before, without_variables)


def test_standard_is_raised_in_the_unpacked_source(tmp_path: Path) -> None:
    for folder in ("", "horovod/torch", "horovod/common/ops/cuda"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "CMakeLists.txt").write_text(
            'set(CMAKE_CXX_STANDARD 14)\nset(CMAKE_CUDA_STANDARD 11)\nset(CMAKE_CUDA_FLAGS "${FLAGS} -std=c++11")\n'
        )
    (tmp_path / "setup.py").write_text("config = 'Debug' if self.debug else 'RelWithDebInfo'\n")
    install_horovod.raise_standard(tmp_path)
    for file in tmp_path.rglob("CMakeLists.txt"):
        text = file.read_text()
        assert "CXX_STANDARD 17" in text and "CUDA_STANDARD 17" in text and "-std=c++17" in text
        assert "14" not in text and "11" not in text
    assert "RelWithDebInfo" not in (tmp_path / "setup.py").read_text()


@pytest.mark.parametrize("script", [install_horovod, setup_environment])
def test_all_missing_prerequisites_are_named_at_once(
    script: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(install_horovod.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    named = "; ".join(script.missing_prerequisites())  # type: ignore[attr-defined]
    assert "g++" in named and "make" in named and "python3-dev" in named


def test_old_python_and_missing_venv_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_environment, "OLDEST_PYTHON", (99, 0))
    monkeypatch.setattr(setup_environment.importlib.util, "find_spec", lambda name: None)
    named = "; ".join(setup_environment.missing_prerequisites())
    assert "Python >= 99.0" in named and "python3-venv" in named


def test_nccl_is_built_where_torch_has_cuda_and_a_toolkit_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    found = Path("toolkit"), Path("nccl")
    assert install_horovod.use_nccl("13.0", *found)
    assert not install_horovod.use_nccl(None, *found)
    assert not install_horovod.use_nccl("13.0", None, found[1])
    assert "no CUDA toolkit was found" in capsys.readouterr().out


def test_extras_and_build_requirements_are_those_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert set(setup_environment.optional_dependencies(text)) >= {"examples", "lint", "test"}
    assert any(requirement.startswith("setuptools") for requirement in setup_environment.build_requirements(text))
    made_up = '[project.optional-dependencies]\na = ["x[y]>=1"]\nb = [\n  "z",\n]\n[tool.x]\nc = ["d"]\n'
    assert setup_environment.optional_dependencies(made_up) == {"a": ["x[y]>=1"], "b": ["z"]}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[setup_environment.Environment, list[str]]:
    """A project in a temporary folder, whose steps leave what they would install, and note that they ran."""
    for name, text in {
        "pyproject.toml": '[project.optional-dependencies]\ntest = ["pytest"]\nlint = ["ruff"]\n',
        "setup.py": "",
        "csrc/library.cpp": "",
        "scripts/install_horovod.py": "",
        "grawa_hvd/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = setup_environment.Environment(tmp_path / "venv")
    packages = environment.folder / "lib/python3/site-packages"
    packages.mkdir(parents=True)
    environment.python.parent.mkdir()
    environment.python.symlink_to(sys.executable)
    ran: list[str] = []

    def run(self: setup_environment.Environment, *arguments: str, show: bool = False) -> None:
        made = {"torch": "torch-2.13.0", "horovod": "horovod-0.28.1", "--editable": "grawa_hvd-0.1.0"}
        step = next((name for name in made if any(name in part and "/cons" not in part for part in arguments)), "extra")
        if step in made:
            (packages / f"{made[step]}.dist-info").mkdir(exist_ok=True)
        if step == "--editable":
            (tmp_path / "grawa_hvd" / "_C.so").write_text("")
        ran.append(step)

    monkeypatch.setattr(setup_environment, "ROOT", tmp_path)
    monkeypatch.setattr(setup_environment.Environment, "run", run)
    environment.stamp("venv", "3")
    return environment, ran


def due(project: tuple[setup_environment.Environment, list[str]], *extras: str) -> list[str]:
    environment, ran = project
    ran.clear()
    with environment.locked():
        setup_environment.install_all(environment, "2.13.0", list(extras))
    return list(ran)


def test_steps_are_redone_only_when_their_inputs_change(
    project: tuple[setup_environment.Environment, list[str]], tmp_path: Path
) -> None:
    assert due(project, "test") == ["torch", "horovod", "extra", "--editable"]
    assert due(project, "test") == []
    (tmp_path / "csrc" / "library.cpp").write_text("// changed")
    assert due(project, "test") == ["--editable"]
    assert due(project, "test", "lint") == ["extra"]
    (tmp_path / "scripts" / "install_horovod.py").write_text("# changed")
    assert due(project, "test") == ["horovod"]
    (tmp_path / "grawa_hvd" / "_C.so").unlink()
    assert due(project) == ["--editable"]


def test_an_interrupted_step_is_done_again(
    project: tuple[setup_environment.Environment, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    due(project, "test")
    (tmp_path / "csrc" / "library.cpp").write_text("// changed")

    def interrupted(self: setup_environment.Environment, *arguments: str, show: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(setup_environment.Environment, "run", interrupted)
        due(project, "test")
    (tmp_path / "csrc" / "library.cpp").write_text("")  # as it was before: what is half built must not pass for done
    assert due(project, "test") == ["--editable"]


def test_a_torch_that_a_later_step_replaced_is_reported(
    project: tuple[setup_environment.Environment, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, _ = project

    def replaces_torch(environment: setup_environment.Environment, torch: str) -> None:
        found = next(environment.folder.glob("lib/*/*/torch-*"))
        found.rename(found.with_name("torch-2.99.dist-info"))

    monkeypatch.setattr(setup_environment, "install_package", replaces_torch)
    with pytest.raises(SystemExit, match=r"replaced torch 2\.13\.0 by 2\.99"):
        setup_environment.install_all(environment, "2.13.0", [])


def test_unknown_extras_are_named(project: tuple[setup_environment.Environment, list[str]]) -> None:
    with pytest.raises(SystemExit, match="no nonsense"):
        due(project, "nonsense")


def test_extras_alone_bring_no_torch(
    project: tuple[setup_environment.Environment, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, ran = project
    command = ["setup_environment", "--venv", str(environment.folder), "--extras-alone", "--extras", "lint"]
    monkeypatch.setattr(sys, "argv", command)
    for _ in range(2):  # the second has nothing to do
        setup_environment.main()
    assert ran == ["extra"] and environment.version_of("torch") is None
    assert (environment.folder / "constraints.txt").read_text() == "torch<0\n"

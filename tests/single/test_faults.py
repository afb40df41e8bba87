"""What a test did to workers is noted as survived once it has passed, and not before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from faults import KINDS

from benchmarks import faults

TESTS = """
import os
import pytest

@pytest.fixture
def others():
    yield
    pytest.fail("failed on rank 1")

@pytest.mark.fault("diverged")
def test_passes(): pass

@pytest.mark.parametrize("case", [pytest.param(1, marks=pytest.mark.fault("late")), 2])
def test_a_control_is_none(case): pass

@pytest.mark.fault("diverged")
def test_fails(): assert False

@pytest.mark.fault("diverged")
def test_fails_elsewhere(others): pass

@pytest.mark.fault("diverged")
@pytest.mark.skip(reason="in this world")
def test_is_skipped(): pass

def test_has_a_launcher(fault): fault("SIGKILL", "elastic horovodrun")

@pytest.mark.fault("diverged")
def test_zz_dies(): os._exit(1)
"""


def noted(folder: Path, *arguments: str, **environment: str) -> faults.Noted:
    (folder / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "faults", "-p", "no:cacheprovider", "-c", "/dev/null"]
    folders = f"{Path(__file__).resolve().parents[1]}:{os.environ.get('PYTHONPATH', '')}"
    subprocess.run([*command, "--rootdir", folder, "test_some.py", "--faults", "noted", *arguments], cwd=folder,
                   env={**os.environ, "PYTHONPATH": folders, **environment}, timeout=120)  # fmt: skip
    return faults.read(folder / "noted")


def test_a_fault_is_survived_where_its_test_has_passed_on_all_ranks(tmp_path: Path) -> None:
    found = noted(tmp_path)
    survived = {name.split("::")[1]: [one["survived"] for one in test] for name, test in found.items()}
    assert survived == {
        "test_passes": [True], "test_a_control_is_none[1]": [True], "test_fails": [False],
        "test_fails_elsewhere": [False], "test_has_a_launcher": [True], "test_zz_dies": [False],
    }  # fmt: skip
    assert found["test_some.py::test_passes"][0]["kind"] == KINDS["diverged"]
    assert found["test_some.py::test_has_a_launcher"][0]["under"] == "elastic horovodrun"


def test_worlds_are_noted_beside_each_other_and_by_their_first_rank_alone(tmp_path: Path) -> None:
    for size in (2, 4):
        noted(tmp_path, "-k", "passes", GRAWA_TEST_WORLD=f"torchrun -np {size}")
    noted(tmp_path, "-k", "fails", GRAWA_TEST_WORLD="torchrun -np 2", RANK="1")
    assert list(noted(tmp_path, "-k", "control")) == [
        "test_some.py::test_a_control_is_none[1]",
        *(f"test_some.py::test_passes under torchrun -np {size}" for size in (2, 4)),
    ]


def test_a_part_that_is_run_whole_takes_the_place_of_what_was_noted_of_it() -> None:
    of = {name: [{"survived": True}] for name in (
        "tests/parallel/a under horovodrun -np 2", "tests/parallel/a under torchrun -np 2", "tests/single/a",
    )}  # fmt: skip
    horovod, _, single = of
    new = {"tests/parallel/b under torchrun -np 2": [{"survived": False}]}
    assert faults.merged(of, new, "torch", whole=False) == dict(sorted({**of, **new}.items()))
    assert list(faults.merged(of, new, "torch", whole=True)) == [horovod, *new, single]
    assert faults.merged(of, {}, "torch", whole=True) == of


def test_what_is_noted_is_of_tests_that_there_are() -> None:
    for name in faults.read(faults.NOTES):
        file, _, test = name.partition("::")
        assert f"def {test.partition('[')[0].partition(' under ')[0]}(" in (faults.ROOT / file).read_text(), name

"""What type checkers are told of the optimizer and of the compiled extension is what there is."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path

import horovod.torch as hvd
import pytest
import torch
from torch.distributed.algorithms.join import Joinable

import grawa_hvd
from grawa_hvd import _C

STUB = ast.parse((Path(grawa_hvd.__file__).parent / "_C.pyi").read_text())
MEMBERS = sorted(name for name in vars(grawa_hvd.SupportsAveraging) if not name.startswith("_"))


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    hvd.init()
    yield
    hvd.shutdown()


def optimizers() -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    plain = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    return plain, grawa_hvd.DistributedGrawaOptimizer(plain)


def test_the_optimizer_has_all_that_its_type_says() -> None:
    plain, averaging = optimizers()
    assert typing.get_type_hints(grawa_hvd.DistributedGrawaOptimizer)["return"] is grawa_hvd.GrawaOptimizer
    assert isinstance(averaging, grawa_hvd.SupportsAveraging)
    assert not isinstance(plain, grawa_hvd.SupportsAveraging)
    assert len(MEMBERS) >= 8
    missing = [name for name in MEMBERS if not hasattr(type(averaging), name)]
    assert missing == []


def test_the_type_says_all_that_the_optimizer_has() -> None:
    plain, averaging = optimizers()
    public = {name for name in vars(type(averaging)) if not name.startswith("_")}
    # What torch.distributed.algorithms.Join asks for is torch's to say.
    known = {*MEMBERS, *dir(type(plain)), *grawa_hvd.SupportsAveraging.__annotations__, *dir(Joinable)}
    assert public <= known


@pytest.mark.parametrize("name", MEMBERS)
def test_each_member_takes_what_its_type_says(name: str) -> None:
    told, found = inspect.getattr_static(grawa_hvd.SupportsAveraging, name), vars(type(optimizers()[1]))[name]
    assert isinstance(told, property) == isinstance(found, property)
    if isinstance(told, property):
        told, found = told.fget, found.fget
    assert inspect.signature(told).parameters.keys() == inspect.signature(found).parameters.keys()


def test_the_stub_names_what_the_extension_has() -> None:
    functions = {node.name for node in STUB.body if isinstance(node, ast.FunctionDef)}
    classes = {
        node.name: {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        for node in STUB.body
        if isinstance(node, ast.ClassDef)
    }
    assert {*functions, *classes} == {name for name in vars(_C) if not name.startswith("_")}
    for name, methods in classes.items():
        found = {method for method in vars(getattr(_C, name)) if not method.startswith("_")}
        assert methods - {"__init__"} == found


def test_all_names_are_there() -> None:
    for name in grawa_hvd.__all__:
        assert getattr(grawa_hvd, name) is not None
    with pytest.raises(AttributeError, match="module 'grawa_hvd' has no attribute 'Mean'"):
        grawa_hvd.Mean  # type: ignore[attr-defined]  # noqa: B018

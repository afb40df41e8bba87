"""Bad arguments are refused at the door, by name, with their value and what is allowed."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from grawa_hvd.settings import Settings

GOOD: dict[str, Any] = {
    "averaging": "lgrawa", "period": 32, "pull": 0.5, "proximity": 0.01,
    "outer_momentum": 0.0, "scores": "local", "layers": "parameter", "groups": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("period", 0, "an integer of at least 1"),
        ("period", 2.0, "an integer of at least 1"),
        ("period", True, "an integer of at least 1"),
        ("pull", "half", "from 0 to 1"),
        ("proximity", None, "from 0 to the period, 32"),
        ("pull", -0.1, "from 0 to 1"),
        ("pull", 1.1, "from 0 to 1"),
        ("pull", float("nan"), "from 0 to 1"),
        ("proximity", -1, "from 0 to the period, 32"),
        ("proximity", 33, "from 0 to the period, 32"),
        ("outer_momentum", 1.0, "at least 0 and below 1"),
        ("layers", "model", '"parameter" or "module"'),
        ("averaging", "mean", "one of"),
        ("scores", 3, '"local", a callable'),
        ("warmup_steps", -1, "an integer of at least 0"),
        ("optimizer_state", "sum", '"keep", "average" or "reset"'),
    ],
)
def test_a_bad_argument_is_named(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=name) as error:
        Settings(**{**GOOD, name: value})
    assert allowed in str(error.value)
    assert repr(value) in str(error.value)


def test_ranks_compare_everything_but_their_own_tensors_and_functions() -> None:
    lines = Settings(**{**GOOD, "averaging": "lgrawa", "scores": lambda: None}).describe()
    assert "averaging=LGRAWA(floor=1.0)" in lines
    assert "period=32" in lines
    assert "scores=FreshScores(decay=0.43)" in lines
    assert not any(" at 0x" in line or line.startswith("groups") for line in lines)


def test_scores_that_nobody_goes_by_are_told() -> None:
    with pytest.warns(UserWarning, match=r"scores=FreshScores\(…\) has no effect with averaging=Uniform"):
        Settings(scores=lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Settings(averaging="lgrawa", scores=lambda: None)
        Settings(averaging="uniform")


def diloco(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.7, momentum=0.9, nesterov=True)


def test_an_outer_optimizer_is_compared_by_its_class_and_settings() -> None:
    (line,) = [line for line in Settings(outer_optimizer=diloco).describe() if line.startswith("outer_optimizer")]
    assert line.startswith("outer_optimizer=SGD(") and "'lr': 0.7" in line and "'nesterov': True" in line
    assert line in Settings(outer_optimizer=functools.partial(diloco)).describe()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"outer_optimizer": lambda parameters: 3}, "returned 3"),
        ({"outer_optimizer": 3}, "raised TypeError"),
        ({"outer_optimizer": diloco, "outer_momentum": 0.5}, "outer_optimizer and outer_momentum"),
    ],
)
def test_an_outer_optimizer_that_is_none_or_one_too_many_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Settings(**options)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("period", np.int64(3)), ("period", torch.tensor(3)), ("pull", np.float32(0.5)), ("pull", torch.tensor(0.5)),
        ("proximity", np.float16(0.5)), ("outer_momentum", np.array(0.5)), ("overlap", np.uint8(3)),
        ("fragments", np.int32(3)), ("local_period", np.int64(3)), ("warmup_steps", torch.tensor(3)),
        ("groups", np.int64(3)),
    ],
    ids=str,
)  # fmt: skip
def test_numbers_of_other_libraries_are_taken_as_the_numbers_they_are(argument: str, value: Any) -> None:
    settings, plain = Settings(**{argument: value}), Settings(**{argument: value.item()})
    assert getattr(settings, argument) == value.item()
    assert type(getattr(settings, argument)) is type(value.item())
    assert settings.describe() == plain.describe()


@pytest.mark.parametrize("value", [np.bool_(True), torch.tensor(True), np.ones(1), torch.ones(1), torch.tensor(1.5)])
def test_what_is_no_integer_is_no_period_whoever_made_it(value: Any) -> None:
    with pytest.raises(ValueError, match="period must be an integer"):
        Settings(period=value)

"""What users report: means since the last round, checked, and read from a device only when a round takes place."""

from __future__ import annotations

import math

import pytest
import torch

from grawa_hvd.report import Reported


def test_means_of_losses_and_accuracies_and_the_sum_of_samples() -> None:
    reported = Reported()
    reported.add(loss=1.0, accuracy=0.5, samples=32)
    reported.add(loss=torch.tensor(3.0), samples=16)
    assert reported.row() == [2.0, 0.5, 48.0]


def test_nothing_reported_is_nan() -> None:
    assert all(math.isnan(value) for value in Reported().row())


def test_a_tensor_that_changes_later_counts_as_it_was() -> None:
    reported, loss = Reported(), torch.tensor(2.0, requires_grad=True)
    reported.add(loss=loss * 1)
    with torch.no_grad():
        loss.fill_(100.0)
    assert reported.row()[0] == 2.0


def test_state_survives_a_checkpoint() -> None:
    reported, other = Reported(), Reported()
    reported.add(loss=torch.tensor(1.0), accuracy=0.25)
    other.load(reported.state())
    other.add(loss=3.0)
    assert other.row()[:2] == [2.0, 0.25]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accuracy": 1.5}, "accuracy must be from 0 to 1, but is 1.5"),
        ({"accuracy": math.nan}, "accuracy must be from 0 to 1, but is nan"),
        ({"samples": -1}, "samples must be at least 0, but is -1"),
        ({"loss": torch.zeros(2)}, r"loss must be one number, but is a tensor of shape \(2,\)"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reported().add(**values)

"""What users report: means since the last round, checked, and read from a device only when a round takes place."""

from __future__ import annotations

import math

import pytest
import torch

from grawa_hvd.report import Reported


def row(reported: Reported) -> list[float]:
    return [float(value) for value in reported.means()]


def test_means_of_losses_and_accuracies_and_the_sum_of_samples() -> None:
    reported = Reported()
    reported.add(loss=1.0, accuracy=0.5, samples=32)
    reported.add(loss=torch.tensor(3.0), samples=16)
    assert row(reported) == [2.0, 0.5, 48.0]


def test_nothing_reported_is_nan() -> None:
    assert all(math.isnan(value) for value in row(Reported()))


def test_a_tensor_that_changes_later_counts_as_it_was() -> None:
    reported, loss = Reported(), torch.tensor(2.0, requires_grad=True)
    reported.add(loss=loss * 1)
    with torch.no_grad():
        loss.fill_(100.0)
    assert row(reported)[0] == 2.0


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_tensors_of_one_number_and_plain_numbers_add_up_in_float64(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    reported = Reported()
    for value in (0.1, torch.full(shape, 3, dtype=dtype), 0.2, torch.full(shape, 2**24 + 1, dtype=torch.int64)):
        reported.add(samples=value)
    assert row(reported)[2] == 0.1 + 3 + 0.2 + 2**24 + 1


def test_a_report_in_inference_mode_can_be_added_to_outside_of_it() -> None:
    reported = Reported()
    with torch.inference_mode():
        reported.add(loss=torch.ones(()))
    reported.add(loss=torch.full((), 3.0, requires_grad=True))
    with torch.inference_mode():
        reported.add(loss=torch.full((), 5.0))
    assert row(reported)[0] == 3.0


def test_state_of_a_checkpoint_of_version_1_is_a_list_of_all_values() -> None:
    reported = Reported()
    reported.load({"loss": [1.0, 2.5], "accuracy": [], "samples": [32.0, 16.0]})
    reported.add(loss=0.5)
    means = row(reported)
    assert means[0] == 4 / 3 and math.isnan(means[1]) and means[2] == 48


def test_state_survives_a_checkpoint_to_the_bit() -> None:
    """In float64, 0.1 + 0.2 + 0.3 is another number than 0.1 + (0.2 + 0.3)."""
    reported, other = Reported(), Reported()
    for number in (0.1, 0.2):
        reported.add(loss=torch.tensor(number, dtype=torch.float64), accuracy=number)
    other.load(reported.state())
    for whole in (reported, other):
        whole.add(loss=torch.tensor(0.3, dtype=torch.float64), accuracy=0.3)
    assert row(other)[:2] == row(reported)[:2] == [(0.1 + 0.2 + 0.3) / 3] * 2


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

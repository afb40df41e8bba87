"""What a checkpoint of the averaging keeps, and how earlier versions are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.rounds import member_state
from grawa_hvd.transport.local import LocalTransport, run_workers


def run(transport: LocalTransport, steps: range, state: dict[str, Any] | None, start: Tensor) -> tuple[Any, Tensor]:
    """State and parameters after some steps of outer momentum, taken up from a state."""
    model = nn.ParameterList([start.clone()])
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), process_group=transport, period=2,
        outer_momentum=0.6,
    )  # fmt: skip
    if state is not None:
        optimizer.load_state_dict(state)
    for step in steps:
        model[0].grad = torch.full((3,), float(step + transport.rank))
        optimizer.step()
    return optimizer.state_dict(), model[0].detach().clone()


def as_version_2(state: dict[str, Any]) -> dict[str, Any]:
    """The same in the words of version 2: v of c ← c + v, no outer optimizer, no policy's memory."""
    averaging = {key: value for key, value in state["grawa"].items() if key not in ("policy", "length")}
    averaging["version"] = 2
    averaging["state"] = {
        number: {"center": kept["center"], "velocity": -kept["outer"]["momentum_buffer"]}
        for number, kept in averaging["state"].items()
    }
    return {**state, "grawa": averaging}


@pytest.mark.parametrize("change", [lambda state: state, as_version_2], ids=["version 3", "version 2"])
def test_outer_momentum_goes_on_bitwise_from_a_checkpoint(change: Any) -> None:
    def work(transport: LocalTransport) -> tuple[Tensor, Tensor]:
        start = torch.arange(3.0)
        state, parameters = run(transport, range(5), None, start)
        _, again = run(transport, range(5, 11), change(state), parameters)
        _, whole = run(transport, range(11), None, start)
        return whole, again

    for whole, again in run_workers(2, work):
        assert torch.equal(whole, again)


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of \(1, 2, 3\), but is 4"):
        member_state.current({"version": 4})


@pytest.mark.parametrize("version", [1, 2, 3])
def test_what_each_version_wrote_goes_on_as_it_did_then(version: int) -> None:
    """The files hold model and optimizer after 6 steps of two ranks over Horovod, and the model 8 steps later."""

    def work(transport: LocalTransport) -> None:
        file = Path(__file__).parent / "states" / f"version_{version}.worker{transport.rank}.pt"
        kept = torch.load(file, weights_only=True)
        assert kept["optimizer"]["grawa"]["version"] == version
        model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model.named_parameters(),
            process_group=transport, averaging=grawa_hvd.LGRAWA(floor=0.0), period=4, outer_momentum=0.6,
        )  # fmt: skip
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        for step in range(6, 14):
            for number, parameter in enumerate(model.parameters()):
                places = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
                parameter.grad = torch.sin(places + number + step) * (1 + transport.rank)
            optimizer.step()
        assert optimizer.rounds == 3
        for name, value in model.state_dict().items():
            # The same sums in another order, 8 steps of a few roundings each, of numbers around 1.
            torch.testing.assert_close(value, kept["after"][name], rtol=0, atol=1e-13)

    run_workers(2, work)

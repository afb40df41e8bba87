"""What takes part in rounds beside the parameters: buffers and the optimizer's state, over workers in one process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.model.buffers import Buffers
from grawa_hvd.transport.local import LocalTransport, run_workers

WORKERS, FEATURES, BATCH = 3, 4, 16
EPSILON = 2.0**-24


def batch(worker: int) -> Tensor:
    """Of one worker: other means and other spreads than those of the others."""
    generator = torch.Generator().manual_seed(worker)
    return worker + (1 + worker) * torch.randn(BATCH, FEATURES, generator=generator)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(FEATURES, momentum=1.0), nn.Linear(FEATURES, 2)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        with torch.no_grad():
            self.linear.weight.fill_(0.1)
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


def trained(transport: LocalTransport, kind: Callable[..., Any], steps: int = 1, **options: Any) -> tuple[Net, Any]:
    model = Net()
    options = {"period": 1, **options}
    if options.get("buffers") == "model":
        options["buffers"] = model
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        kind(model.parameters(), lr=0.05),
        model.named_parameters(),
        process_group=transport,
        **{"averaging": "lgrawa", **options},
    )
    for _ in range(steps):
        model.scale.fill_(float(transport.rank))
        model.seen += transport.rank
        optimizer.zero_grad()
        model(batch(transport.rank)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def check_statistics(model: Net) -> None:
    """Those of the samples of all workers together, of which each worker has as many."""
    samples = torch.stack([batch(worker) for worker in range(WORKERS)]).double()
    mean = samples.mean(dim=(0, 1))
    within, between = samples.var(dim=1).mean(dim=0), samples.mean(dim=1).var(dim=0, unbiased=False)
    # A dozen roundings of numbers below 20, of which the variance takes squares.
    torch.testing.assert_close(model.norm.running_mean, mean.float(), rtol=0, atol=12 * 20 * EPSILON)
    torch.testing.assert_close(model.norm.running_var, (within + between).float(), rtol=0, atol=12 * 400 * EPSILON)
    torch.testing.assert_close(model.scale, torch.full((2,), (WORKERS - 1) / 2), rtol=4 * EPSILON, atol=0)


def test_a_round_averages_buffers_and_pools_variances() -> None:
    def work(transport: LocalTransport) -> None:
        model, _ = trained(transport, torch.optim.SGD, buffers="model")
        check_statistics(model)
        assert int(model.seen) == transport.rank  # a counter is its worker's own

    run_workers(WORKERS, work)


def test_buffers_are_kept_unless_asked_for() -> None:
    def work(transport: LocalTransport) -> None:
        model, optimizer = trained(transport, torch.optim.SGD)
        with optimizer.consensus():
            torch.testing.assert_close(model.norm.running_mean, batch(transport.rank).mean(dim=0))
        assert model.scale.tolist() == [float(transport.rank)] * 2

    run_workers(WORKERS, work)


def test_the_consensus_averages_buffers_and_gives_them_back() -> None:
    def work(transport: LocalTransport) -> None:
        model, optimizer = trained(transport, torch.optim.SGD, buffers="model", period=8)
        own = [buffer.clone() for buffer in model.buffers()]
        with optimizer.consensus():
            check_statistics(model)
        assert all(map(torch.equal, model.buffers(), own))

    run_workers(WORKERS, work)


@pytest.mark.fault("diverged")
def test_a_worker_that_diverged_takes_the_statistics_of_the_others() -> None:
    def work(transport: LocalTransport) -> tuple[Net, Any]:
        model = Net()
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.05), model.named_parameters(), process_group=transport, period=1,
            buffers=model.named_buffers(),
        )  # fmt: skip
        x = batch(transport.rank)
        x[0, 0] = torch.nan if transport.rank == 1 else x[0, 0]
        model(x).square().sum().backward()
        optimizer.step()
        return model, optimizer

    means = [model.norm.running_mean for model, _ in run_workers(WORKERS, work)]
    expected = (batch(0).mean(dim=0) + batch(2).mean(dim=0)) / 2
    for mean in means:
        torch.testing.assert_close(mean, expected)


STATES = {torch.optim.SGD: [], torch.optim.AdamW: ["exp_avg", "exp_avg_sq"], torch.optim.Adagrad: ["sum"]}


@pytest.mark.parametrize("kind", STATES)
def test_a_round_averages_the_state_of_the_optimizer(kind: Any) -> None:
    def work(transport: LocalTransport) -> list[dict[str, Tensor]]:
        model, optimizer = trained(transport, kind, optimizer_state="average")
        return [{key: optimizer.state[p][key] for key in STATES[kind]} for p in model.parameters()]

    def alone(transport: LocalTransport) -> list[dict[str, Tensor]]:
        model, optimizer = trained(transport, kind, period=8)
        return [{key: optimizer.state[p][key] for key in STATES[kind]} for p in model.parameters()]

    own, found = run_workers(WORKERS, alone), run_workers(WORKERS, work)
    for worker in found:
        for number, state in enumerate(worker):
            for key, value in state.items():
                mean = torch.stack([other[number][key] for other in own]).double().mean(dim=0)
                torch.testing.assert_close(value.double(), mean, rtol=2 * WORKERS * EPSILON, atol=1e-30)


@pytest.mark.parametrize("fragments", [1, 2])
def test_state_is_averaged_or_made_anew_every_so_many_rounds(fragments: int) -> None:
    def work(transport: LocalTransport, kind: str, steps: int) -> tuple[list[float], list[Tensor]]:
        _, optimizer = trained(
            transport, torch.optim.AdamW, steps=steps, period=2, fragments=fragments, optimizer_state=kind,
            optimizer_state_period=2,
        )  # fmt: skip
        states = list(optimizer.state.values())
        return [float(state["step"]) for state in states], [state["exp_avg"] for state in states]

    for kind, steps, is_turn in [("average", 2, False), ("average", 4, True), ("reset", 3, False), ("reset", 5, True)]:
        (counts, own), *others = run_workers(WORKERS, functools.partial(work, kind=kind, steps=steps))
        if kind == "reset":
            assert counts == [1.0 if is_turn else 3.0] * 4
        else:
            alike = [all(map(torch.equal, own, other)) for _, other in others]
            assert alike == [is_turn] * (WORKERS - 1)


def test_warming_up_keeps_the_state() -> None:
    def work(transport: LocalTransport) -> list[float]:
        _, optimizer = trained(transport, torch.optim.AdamW, steps=3, period=8, warmup_steps=3, optimizer_state="reset")
        return [float(state["step"]) for state in optimizer.state.values()]

    assert run_workers(WORKERS, work) == [[3.0] * 4] * WORKERS


def test_a_round_may_make_the_state_anew() -> None:
    def work(transport: LocalTransport) -> None:
        model, optimizer = trained(transport, torch.optim.AdamW, steps=2, period=2, optimizer_state="reset")
        assert not optimizer.state
        model(batch(transport.rank)).square().sum().backward()
        optimizer.step()
        assert [float(state["step"]) for state in optimizer.state.values()] == [1.0] * 4

    run_workers(WORKERS, work)


@pytest.mark.fault("differ")
def test_a_state_that_one_worker_lacks_is_an_error_on_all() -> None:
    def work(transport: LocalTransport) -> str:
        model = Net()
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.AdamW(model.parameters()), model.named_parameters(), process_group=transport, period=1,
            optimizer_state="average",
        )  # fmt: skip
        model(batch(0)).square().sum().backward()
        if transport.rank == 1:
            model.linear.weight.grad = None
        try:
            optimizer.step()
        except ValueError as error:
            return str(error)
        return ""

    found = run_workers(WORKERS, work)
    assert len(set(found)) == 1
    assert "the optimizer's state on rank 1 has other tensors than on rank 0" in found[0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"optimizer_state": "mean"}, '"keep", "average" or "reset"'),
        ({"optimizer_state": "average", "overlap": 1}, "needs overlap=0"),
        ({"buffers": "average"}, "model.named_buffers"),
        ({"buffers": [1]}, "model.named_buffers"),
    ],
)
def test_bad_choices_are_refused(options: dict[str, Any], named: str) -> None:
    def work(transport: LocalTransport) -> None:
        with pytest.raises(ValueError, match=named):
            trained(transport, torch.optim.SGD, period=4, **{key: options[key] for key in options})

    run_workers(1, work)


def test_variances_are_those_beside_their_means() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    buffers = Buffers(model)
    assert {buffers.names[v]: buffers.names[m] for v, m in buffers.variances.items()} == {
        "0.running_var": "0.running_mean", "2.running_var": "2.running_mean",
    }  # fmt: skip


REPLACED = {
    "cast": lambda model: model.double(),
    "assigned": lambda model: model.norm.__setattr__("running_mean", model.norm.running_mean.clone()),
    "loaded": lambda model: model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True),
}


@pytest.mark.parametrize("replaced", REPLACED)
def test_buffers_are_those_that_the_model_has_at_the_round(replaced: str) -> None:
    def work(transport: LocalTransport) -> tuple[Tensor, Tensor]:
        model, optimizer = trained(transport, torch.optim.SGD, buffers="model")
        parameters = [*model.parameters()]
        REPLACED[replaced](model)
        optimizer.param_groups[0]["params"][:] = parameters if replaced != "loaded" else [*model.parameters()]
        model(batch(transport.rank).to(model.linear.weight.dtype)).square().sum().backward()
        optimizer.step()
        return model.norm.running_mean, model.norm.running_var

    first, *others = run_workers(WORKERS, work)
    for other in others:
        assert all(map(torch.equal, first, other))


UNWRITABLE = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse by rows": lambda: torch.eye(3).to_sparse_csr(),
    "expanded": lambda: torch.ones(1, 1).expand(3, 3),
    "without data": lambda: torch.ones(3, device="meta"),
    "of inference": lambda: torch.inference_mode()(torch.ones)(3),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("kind", UNWRITABLE)
def test_buffers_that_training_cannot_write_to_are_left_alone(kind: str) -> None:
    def work(transport: LocalTransport) -> None:
        model = Net()
        model.register_buffer("constant", UNWRITABLE[kind]())
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.05), process_group=transport, period=1, buffers=model
        )
        model.scale.fill_(float(transport.rank))
        model(batch(transport.rank)).square().sum().backward()
        optimizer.step()
        check_statistics(model)
        with optimizer.consensus():
            pass

    run_workers(WORKERS, work)

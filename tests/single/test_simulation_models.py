"""What a simulation is given and gives back: models with buffers and dropout, batches, results, and what is refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.averaging import Decentralized, Mixing, Observed, Uniform
from grawa_hvd.simulation import Simulation, batches, simulate, split

MSE = nn.functional.mse_loss
GENERATOR = torch.Generator().manual_seed(0)
INPUTS, TARGETS = torch.randn(40, 4, generator=GENERATOR), torch.randn(40, 2, generator=GENERATOR)
SHARDS = [(INPUTS[:16], TARGETS[:16]), (INPUTS[16:], TARGETS[16:])]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def run(model: nn.Module | None = None, **options: Any) -> Simulation:
    given = {"shards": SHARDS, "loss": MSE, "steps": 6, "batch_size": 8, "period": 3, "progress": False, **options}
    return simulate(network() if model is None else model, given.pop("loss"), given.pop("shards"), **given)


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def trained_alone(model: nn.Module, worker: int, steps: int) -> nn.Module:
    """One worker's model, by plain SGD on its own batches."""
    optimizer, (inputs, targets) = torch.optim.SGD(model.parameters(), lr=0.1), SHARDS[worker]
    for rows in islice(batches(len(inputs), 8, 0, worker), steps):
        optimizer.zero_grad()
        MSE(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    return model


def test_each_worker_has_running_statistics_of_its_own_and_their_mean_pools_them() -> None:
    result = run(normalised(), optimizer=partial(torch.optim.SGD, lr=0.1), period=100)
    alone = [trained_alone(normalised(), worker, 6).state_dict() for worker in range(2)]
    for name, stacked in result.workers.items():
        expected = torch.stack([own[name] for own in alone])
        # Six steps of float32, and the sums of a batch in another order.
        torch.testing.assert_close(stacked, expected, rtol=0, atol=6 * 8 * 2.0**-23)
    mean, variance = result.workers["1.running_mean"], result.workers["1.running_var"]
    torch.testing.assert_close(result.state_dict["1.running_mean"], mean.mean(dim=0))
    pooled = (variance + mean.square()).mean(dim=0) - mean.mean(dim=0).square()
    torch.testing.assert_close(result.state_dict["1.running_var"], pooled)
    assert result.workers["1.num_batches_tracked"].tolist() == [6, 6]
    normalised().load_state_dict(result.state_dict)


def test_the_model_stays_as_it_is_and_takes_the_mean_of_the_workers() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    result = run(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(result.state_dict["0.bias"], before["0.bias"])
    assert torch.equal(result.workers["0.bias"], before["0.bias"].expand(2, -1))
    for name, value in result.state_dict.items():
        torch.testing.assert_close(value, result.workers[name].mean(dim=0))
    assert not torch.equal(result.workers["0.weight"][0], result.workers["0.weight"][1])
    model.load_state_dict(result.state_dict)


class Tied(nn.Module):
    """A weight that is used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs))[:, :2]


def test_a_tied_parameter_is_one_parameter() -> None:
    torch.manual_seed(0)
    model = Tied()
    alone = trained_alone(copy.deepcopy(model), 0, 6)
    result = run(model, optimizer=partial(torch.optim.SGD, lr=0.1), period=100)
    assert torch.equal(result.workers["first.weight"], result.workers["second.weight"])
    torch.testing.assert_close(result.workers["second.weight"][0], alone.second.weight.detach(), rtol=0, atol=2.0**-18)


def test_evaluations_are_of_the_mean_in_evaluation_mode() -> None:
    seen = []

    def evaluate(model: nn.Module) -> float:
        seen.append((model.training, torch.is_grad_enabled(), model[0].weight.detach().clone()))
        return float(MSE(model(INPUTS), TARGETS))

    result = run(evaluate=evaluate, every=4)
    assert [step for step, _ in result.evaluations] == [4, 6]
    assert [(training, grad) for training, grad, _ in seen] == [(False, False)] * 2
    assert torch.equal(seen[-1][2], result.state_dict["0.weight"])
    model = network()
    model.load_state_dict(result.state_dict)
    assert result.evaluations[-1][1] == float(MSE(model(INPUTS), TARGETS).detach())


def test_a_seed_repeats_a_run_with_dropout_and_leaves_other_random_numbers_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 32), nn.Dropout(), nn.Linear(32, 2))

    def losses(seed: int) -> Tensor:
        return run(model, shards=(INPUTS, TARGETS), workers=4, seed=seed).losses

    torch.manual_seed(5)
    first, after = losses(1), torch.rand(3)
    torch.manual_seed(6)
    again = losses(1)
    torch.manual_seed(5)
    assert torch.equal(first, again) and not torch.equal(first, losses(2))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


def test_workers_drop_out_units_of_their_own() -> None:
    model, one = nn.Sequential(nn.Dropout(), nn.Linear(4, 2)), (INPUTS[:1], TARGETS[:1])
    result = run(model, shards=[one, one], steps=1)
    assert result.losses[0, 0] != pytest.approx(float(result.losses[0, 1]), rel=1e-3)


def test_the_mean_leaves_out_workers_that_have_diverged() -> None:
    shards = [SHARDS[0], (torch.full_like(INPUTS, torch.nan), TARGETS)]
    result = run(shards=shards, period=100)
    assert result.workers["0.weight"][1].isnan().all()
    assert all(torch.equal(value, result.workers[name][0]) for name, value in result.state_dict.items())
    with pytest.raises(grawa_hvd.AllWorkersDivergedError, match="none of the 2 workers has finite parameters"):
        run(shards=shards[1:] * 2, period=100)


class Counting(Uniform):
    """Counts how often it is asked."""

    calls: ClassVar[list[int]] = []

    def __call__(self, observed: Observed, state: Any) -> tuple[Mixing, Any]:
        self.calls.append(len(observed.usable))
        return super().__call__(observed, state)


def test_a_policy_is_asked_once_a_round_and_not_once_a_worker() -> None:
    run(averaging=Counting(), shards=(INPUTS, TARGETS), workers=5)
    assert Counting.calls == [5, 5]


def test_passes_of_some_workers_at_a_time_make_the_same_run() -> None:
    options: dict[str, Any] = {"shards": (INPUTS, TARGETS), "workers": 5}
    torch.testing.assert_close(run(**options).workers, run(chunk_size=2, **options).workers, rtol=0, atol=2.0**-18)


def test_batches_are_permutations_of_the_shard_cut_into_pieces() -> None:
    drawn = torch.cat([*islice(batches(7, 4, 3, 2), 7)])
    generator = torch.Generator().manual_seed(65536 * 3 + 2)
    assert torch.equal(drawn, torch.cat([torch.randperm(7, generator=generator) for _ in range(4)]))
    others = [next(batches(50, 50, seed, worker)) for seed in range(3) for worker in range(3)]
    assert len({tuple(order.tolist()) for order in others}) == 9


def test_a_pair_is_dealt_out_in_equal_parts() -> None:
    inputs, targets = torch.arange(11), torch.arange(11) * 2
    parts = split(inputs, targets, 3, seed=1)
    assert sorted(len(x) for x, _ in parts) == [3, 4, 4]
    assert sorted(torch.cat([x for x, _ in parts]).tolist()) == list(range(11))
    assert all(torch.equal(y, 2 * x) for x, y in parts)
    assert [x.tolist() for x, _ in parts] != [x.tolist() for x, _ in split(inputs, targets, 3, seed=2)]


def by_dimensions(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, but is 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, but is 2.5"),
        ({"seed": -1}, "seed must be an integer from 0 to 65535, but is -1"),
        ({"every": 0}, "every must be an integer of at least 1, but is 0"),
        ({"loss": 3}, "loss must be callable, but is 3"),
        ({"evaluate": "accuracy"}, "evaluate must be callable, but is 'accuracy'"),
        ({"averaging": "median"}, "averaging must be one of"),
        ({"pull": 2}, "pull must be from 0 to 1, but is 2"),
        ({"period": 0}, "period must be an integer"),
        ({"scores": "far"}, 'scores must be "local", LocalScores'),
        ({"shards": []}, "shards must be a sequence of"),
        ({"shards": [(INPUTS, TARGETS[:3])]}, r"shards\[0\] must have as many inputs as targets"),
        ({"shards": [SHARDS[0], 3]}, r"shards\[1\] must be a pair of tensors"),
        ({"workers": 3}, "workers must be None or the number of shards, 2, but is 3"),
        ({"shards": (INPUTS, TARGETS)}, "workers must be an integer from 1 to 40 .* but is None"),
        ({"shards": (INPUTS, TARGETS), "workers": 41}, "workers must be an integer from 1 to 40"),
        ({"optimizer": 3}, "optimizer must be a function of parameters"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS raised"),
        ({"optimizer": partial(torch.optim.Muon, lr=0.1)}, "Muon only supports 2D"),
        ({"optimizer": torch.optim.Adafactor}, "for those of all workers are stacked: Adafactor, as it was given"),
        ({"optimizer": by_dimensions}, "and not by their shape, .*: SGD, as it was given, does not"),
        ({"averaging": Decentralized("hypercube"), "shards": SHARDS + SHARDS[:1]}, "hypercube"),
        ({"averaging": Decentralized(), "outer_momentum": 0.5}, "outer_momentum must be left out"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_a_model_that_cannot_be_mapped_over_workers_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"1 is BatchNorm1d\(momentum=None\), whose running statistics"):
        run(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, momentum=None)))
    with pytest.raises(ValueError, match="model must have a parameter that requires a gradient, but Sequential"):
        run(nn.Sequential())
    with pytest.raises(ValueError, match=r"must run under torch\.func\.vmap, but Sequential raised"):
        run(loss=lambda outputs, targets: MSE(outputs, targets) if outputs.sum().item() else outputs.sum())


def test_nothing_but_torch_is_needed() -> None:
    program = """
import sys
for name in ("tqdm", "numpy", "horovod"):
    sys.modules[name] = None
import torch, grawa_hvd
x = torch.randn(8, 2)
result = grawa_hvd.simulate(torch.nn.Linear(2, 2), torch.nn.functional.mse_loss, (x, x), workers=2, steps=4, period=2)
print(len(result.rounds))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.stdout == "2\n", finished.stderr
    assert "step/s" not in finished.stderr


def test_the_function_is_at_the_top() -> None:
    assert grawa_hvd.simulate is simulate

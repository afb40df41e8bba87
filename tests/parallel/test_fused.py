"""The wrapper makes the steps of SGD and AdamW by one kernel, and nobody sees a difference but the clock."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from models import flat, loss_of, mlp, same, sgd, train, wrap
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from grawa_hvd import ops

pytestmark = pytest.mark.ranks(2)

STEPS = 9
# A step rounds each element some ten times, and some more where a pull follows; nine steps of this network add up.
TOLERANCE = STEPS * 20 * torch.finfo(torch.float32).eps

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "sgd-everything": lambda m: sgd(m, momentum=0.9, nesterov=True, weight_decay=0.01, maximize=False),
    "sgd-dampening-maximize": lambda m: sgd(m, lr=1e-3, momentum=0.5, dampening=0.3, maximize=True),
    "sgd-lr-tensor": lambda m: torch.optim.SGD(m.parameters(), lr=torch.tensor(0.05), momentum=0.9),
    "sgd-groups": lambda m: torch.optim.SGD(
        [{"params": m[0].parameters(), "lr": 0.2}, {"params": m[2].parameters(), "momentum": 0.9}], lr=0.05
    ),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
    "adamw-fused-by-torch": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1, fused=True),
}


@pytest.fixture
def steps_made(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What every call of the kernels' handle has returned."""
    made: list[bool] = []
    step = ops.StepTable.step

    def noted(self: ops.StepTable, *arguments: Any) -> bool:
        made.append(step(self, *arguments))
        return made[-1]

    monkeypatch.setattr(ops.StepTable, "step", noted)
    return made


def apart(a: nn.Module | list[Tensor], b: nn.Module | list[Tensor]) -> float:
    return float((flat(a) - flat(b)).abs().max() / flat(b).abs().max())


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("averaging", ["lgrawa", "uniform"])
def test_fused_and_plain_steps_give_the_same(kind: str, averaging: str, steps_made: list[bool]) -> None:
    models, optimizers = [], []
    for fused in (True, False):
        models.append(mlp())
        optimizers.append(
            wrap(models[-1], OPTIMIZERS[kind](models[-1]), period=4, proximity=0.4, averaging=averaging, fused=fused)
        )
        scheduler = StepLR(optimizers[-1], step_size=2, gamma=0.8)
        for step in range(STEPS):
            train(models[-1], optimizers[-1], [step])
            scheduler.step()
    assert apart(*models) < TOLERANCE
    a, b = (list(optimizer.center.values()) for optimizer in optimizers)
    assert apart(a, b) < TOLERANCE
    weights = [optimizer.last_round.weights for optimizer in optimizers]
    assert float((weights[0] - weights[1]).abs().max()) < TOLERANCE
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        mine, theirs = optimizers[0].state[p], optimizers[1].state[q]
        assert mine.keys() == theirs.keys()
        for name in mine:
            if isinstance(mine[name], Tensor):
                torch.testing.assert_close(mine[name], theirs[name], rtol=50 * TOLERANCE, atol=TOLERANCE)
    # The step that makes momentum buffers or moments is torch's own.
    stateless = kind == "sgd"
    assert steps_made == ([True] * STEPS if stateless else [False] + [True] * (STEPS - 1))


class OtherSGD(torch.optim.SGD):
    pass


UNFUSED: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "subclass": lambda m: OtherSGD(m.parameters(), lr=0.1),
    "adam": lambda m: torch.optim.Adam(m.parameters()),
    "amsgrad": lambda m: torch.optim.AdamW(m.parameters(), amsgrad=True),
}


@pytest.mark.parametrize("kind", UNFUSED)
def test_what_the_kernels_do_not_know_is_left_to_torch(kind: str, steps_made: list[bool]) -> None:
    model = mlp()
    optimizer = wrap(model, UNFUSED[kind](model))
    train(model, optimizer, range(4))
    assert not any(steps_made)
    assert optimizer.rounds == 2


def test_hooks_run_once_and_see_what_torch_would_show_them() -> None:
    model = mlp()
    optimizer = wrap(model, period=2)
    seen: list[tuple[str, int, bool]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda opt, args, kwargs: seen.append((name, len(args), opt is optimizer))

    optimizer.register_step_pre_hook(note("pre"))
    optimizer.register_step_post_hook(note("post"))
    train(model, optimizer, range(3))
    assert seen == [("pre", 1, True), ("post", 1, True)] * 3


def test_closure_is_called_once_with_gradients_on() -> None:
    model = mlp()
    optimizer = wrap(model, sgd(model, momentum=0.9), period=2)
    calls: list[bool] = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(model, len(calls))
        loss.backward()
        return loss

    losses = [optimizer.step(closure) for _ in range(4)]
    assert calls == [True] * 4
    assert all(isinstance(loss, Tensor) for loss in losses)
    assert optimizer.rounds == 2


@pytest.mark.fault("gradients")
def test_a_parameter_without_gradient_is_pulled_and_has_no_say() -> None:
    models = [mlp(), mlp()]
    for model, fused in zip(models, (True, False), strict=True):
        optimizer = wrap(model, period=3, proximity=1.5, fused=fused)
        for step in range(7):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            if step >= 3:
                model[0].weight.grad = None
            optimizer.step()
        assert optimizer.last_round.scores[:, 0].tolist() == [0.0, 0.0]
    assert apart(*models) < TOLERANCE


def test_state_that_somebody_replaces_is_the_state_that_is_used() -> None:
    model = mlp()
    optimizer = wrap(model, sgd(model, momentum=0.9), period=100)
    train(model, optimizer, range(3))
    parameter = model[0].weight
    buffer = torch.full_like(parameter, 0.25)
    optimizer.state[parameter]["momentum_buffer"] = buffer
    before = parameter.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.state[parameter]["momentum_buffer"] is buffer
    torch.testing.assert_close(buffer, torch.full_like(buffer, 0.225))
    torch.testing.assert_close(parameter.detach(), before - 0.1 * 0.225)


def test_checkpoints_go_from_fused_to_plain_and_back() -> None:
    models, optimizers = [mlp(), mlp()], []
    for model, fused in zip(models, (True, False), strict=True):
        optimizers.append(wrap(model, torch.optim.AdamW(model.parameters(), lr=0.01), period=3, fused=fused))
    train(models[0], optimizers[0], range(4))
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, range(4, 8))
    assert apart(*models) < TOLERANCE
    models[0].load_state_dict(models[1].state_dict())
    optimizers[0].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, range(8, 12))
    assert apart(*models) < TOLERANCE


def test_a_parameter_added_in_mid_run_is_stepped_too() -> None:
    models = [mlp(), mlp()]
    for model, fused in zip(models, (True, False), strict=True):
        optimizer = wrap(model, sgd(model, momentum=0.9), period=3, fused=fused)
        train(model, optimizer, range(4))
        extra = nn.Parameter(torch.ones(2))
        model.register_parameter("extra", extra)
        optimizer.add_param_group({"params": [extra]})
        for step in range(4, 9):
            optimizer.zero_grad()
            (loss_of(model, step) + (extra**2).sum()).backward()
            optimizer.step()
        assert not torch.equal(extra.detach(), torch.ones(2))
    assert apart(*models) < TOLERANCE


@pytest.mark.fault("overflow")
def test_overflow_under_grad_scaler_skips_the_update_on_that_rank_alone() -> None:
    models = [mlp(), mlp()]
    scales = []
    for model, fused in zip(models, (True, False), strict=True):
        optimizer = wrap(model, sgd(model, momentum=0.9), period=4, proximity=0.4, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(8):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            if step == 5 and peers.rank() == 1:
                model[0].weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        scales.append(scaler.get_scale())
        assert optimizer.rounds == 2
    assert scales[0] == scales[1]
    assert apart(*models) < TOLERANCE


@pytest.fixture
def kernels_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handle refuses what it refuses on CUDA: to count on the host what only the device knows to have happened."""
    step = ops.StepTable.step

    def refusing(self: ops.StepTable, state: Any, hyperparameters: Any, pull: float, norms: Tensor | None,
                 grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:  # fmt: skip
        counts = [entry["step"] for entry in state.values() if "step" in entry]
        if found_inf is not None and any(count.is_cpu for count in counts):
            return False
        return step(self, state, hyperparameters, pull, norms, grad_scale, found_inf)

    monkeypatch.setattr(ops.StepTable, "step", refusing)


@pytest.mark.fault("overflow")
def test_adamw_that_counts_on_the_host_stays_fused_under_grad_scaler(
    kernels_of_cuda: None, steps_made: list[bool], rank: int
) -> None:
    models, optimizers = [mlp(), mlp()], []
    for model, fused in zip(models, (True, False), strict=True):
        optimizer = wrap(model, torch.optim.AdamW(model.parameters(), lr=0.01), period=4, proximity=0.4, fused=fused)
        optimizers.append(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            if step == 5 and rank == 1:
                model[0].weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
    overflows = int(rank == 1)
    # The first step makes the state, and is torch's; at the overflow no step is made at all.
    assert steps_made == [False] + [True] * (STEPS - 1 - overflows)
    assert apart(*models) < TOLERANCE
    assert optimizers[0].rounds == optimizers[1].rounds == 2
    for model, optimizer in zip(models, optimizers, strict=True):
        assert {float(optimizer.state[p]["step"]) for p in model.parameters()} == {STEPS - overflows}
    scores = [optimizer.last_round.scores for optimizer in optimizers]
    assert float((scores[0] - scores[1]).abs().max() / scores[1].max()) < TOLERANCE


def test_one_pass_leaves_gradients_unscaled_as_torch_does() -> None:
    model = mlp()
    optimizer = wrap(model, period=100)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(model, 0)).backward()
    scaled = [p.grad.clone() for p in model.parameters()]
    scaler.step(optimizer)
    assert same([p.grad for p in model.parameters()], [g / 1024 for g in scaled])

"""What a script that worked with hvd.DistributedOptimizer relies on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from models import across, copies, equal_on_all_ranks, from_all, loss_of, mlp, same, set_gradients, sgd, train, wrap
from peers import hvd
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import grawa_hvd
from grawa_hvd import DistributedGrawaOptimizer

# What is tested here does not depend on how many ranks there are.
pytestmark = pytest.mark.ranks(2)


def weight_and_bias() -> list[nn.Parameter]:
    return list(nn.Linear(2, 1).parameters())


REFUSED_BY_HOROVOD: dict[str, Callable[[nn.Parameter, nn.Parameter], dict[str, Any]]] = {
    "parameters_without_names": lambda w, b: {"named_parameters": [w, b]},
    "lists_for_tuples": lambda w, b: {"named_parameters": [["w", w], ["b", b]]},
    "a_name_twice": lambda w, b: {"named_parameters": iter([("w", w), ("w", b)])},
    "a_name_missing": lambda w, b: {"named_parameters": [("w", w)]},
    "no_backward_pass": lambda w, b: {"backward_passes_per_step": 0},
    "negative_backward_passes": lambda w, b: {"backward_passes_per_step": -1},
    "no_group": lambda w, b: {"groups": 0},
    "negative_groups": lambda w, b: {"groups": -1},
    "negative_num_groups": lambda w, b: {"num_groups": -1},
    "a_group_of_names": lambda w, b: {"groups": [["w", "b"]]},
    "a_parameter_in_two_groups": lambda w, b: {"groups": [[w], [b, w]]},
}


@pytest.mark.horovod
@pytest.mark.filterwarnings("ignore:.*num_groups:DeprecationWarning")
@pytest.mark.parametrize("case", REFUSED_BY_HOROVOD)
def test_refuses_what_horovod_refuses_in_the_same_words(case: str) -> None:
    weight, bias = weight_and_bias()
    texts = []
    for distributed in (hvd.DistributedOptimizer, DistributedGrawaOptimizer):
        with pytest.raises(ValueError) as caught:
            distributed(torch.optim.SGD([weight, bias], lr=0.1), **REFUSED_BY_HOROVOD[case](weight, bias))
        texts.append(str(caught.value))
    assert texts[1] == texts[0]


def test_all_duplicate_and_all_missing_names_are_told() -> None:
    parameters = [*weight_and_bias(), *weight_and_bias()]
    with pytest.raises(ValueError, match=r"Found duplicates: bias, weight$"):
        DistributedGrawaOptimizer(
            torch.optim.SGD(parameters, lr=0.1),
            zip(["weight", "bias", "weight", "bias"], parameters, strict=True),
        )
    with pytest.raises(ValueError) as caught:
        DistributedGrawaOptimizer(torch.optim.SGD(parameters, lr=0.1), [("weight", parameters[0])])
    assert all(str(id(parameter)) in str(caught.value) for parameter in parameters[1:])


def test_without_named_parameters_names_are_unique_and_equal_on_all_ranks() -> None:
    model = mlp()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    optimizer = DistributedGrawaOptimizer(torch.optim.SGD(groups, lr=0.1), period=1)
    train(model, optimizer, range(1))
    names = optimizer.last_round.layer_names
    assert len(set(names)) == len(names) == 4
    assert from_all(names) == [names] * peers.size()


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("period", 0, "at least 1"),
        ("period", 2.5, "integer"),
        ("period", True, "integer"),
        ("period", "8", "integer"),
        ("pull", -0.1, "from 0 to 1"),
        ("pull", 1.1, "from 0 to 1"),
        ("pull", float("nan"), "from 0 to 1"),
        ("pull", "half", "from 0 to 1"),
        ("pull", None, "from 0 to 1"),
        ("proximity", -1e-3, "from 0 to"),
        ("proximity", 33, "from 0 to"),
        ("outer_momentum", 1.0, "below 1"),
        ("outer_momentum", -0.5, "at least 0"),
        ("averaging", "best", "'lgrawa'"),
        ("averaging", grawa_hvd.LGRAWA, "policy"),
        ("averaging", 3, "policy"),
        ("scores", "fresh", '"local"'),
        ("scores", 3, '"local"'),
        ("layers", "tensor", '"module"'),
        ("op", "sum", "hvd.Average" if peers.TRANSPORT == "horovod" else "torch.distributed.ReduceOp.AVG"),
        ("gradient_predivide_factor", 2.0, "1.0"),
        ("compression", "fp16", "Compression"),
        pytest.param("process_set", 3, "hvd.ProcessSet", marks=pytest.mark.horovod),
        ("process_group", 3, "torch.distributed.ProcessGroup"),
        ("device_mesh", 3, "DeviceMesh"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_what_is_allowed(argument: str, value: Any, allowed: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        DistributedGrawaOptimizer(sgd(mlp()), **{argument: value})
    text = str(caught.value)
    assert argument in text
    assert repr(value) in text
    assert allowed in text


def test_a_thing_that_is_no_optimizer_is_refused_by_name() -> None:
    with pytest.raises((TypeError, ValueError), match=r"optimizer must be .*Sequential"):
        DistributedGrawaOptimizer(mlp())


@pytest.mark.parametrize("argument", [{"op": "sum"}, {"gradient_predivide_factor": 2.0}], ids=str)
def test_what_has_no_meaning_for_models_is_refused_with_the_reason(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="gradients are not reduced"):
        DistributedGrawaOptimizer(sgd(mlp()), **argument)


@pytest.mark.parametrize(
    ("average", "others"),
    [
        pytest.param("hvd.Average", ["hvd.Sum", "hvd.Adasum"], marks=pytest.mark.horovod),
        pytest.param("ReduceOp.AVG", ["ReduceOp.SUM", "ReduceOp.MAX"], marks=pytest.mark.torch_distributed),
    ],
)
def test_op_may_be_the_average_of_the_backend_and_nothing_else(average: str, others: list[str]) -> None:
    def op(name: str) -> Any:
        backend, _, attribute = name.partition(".")
        return getattr({"hvd": hvd, "ReduceOp": torch.distributed.ReduceOp}[backend], attribute)

    model = mlp()
    optimizer = wrap(model, op=op(average), period=1, pull=1.0)
    train(model, optimizer, range(1))
    assert equal_on_all_ranks(model)
    for other in others:
        with pytest.raises(ValueError, match=r"op must be .*gradients are not reduced") as caught:
            wrap(mlp(), op=op(other))
        assert repr(op(other)) in str(caught.value)


@pytest.mark.parametrize(
    "distribute", [pytest.param("DistributedOptimizer", marks=pytest.mark.horovod), "DistributedGrawaOptimizer"]
)
def test_an_optimizer_that_is_distributed_already_is_refused(distribute: str) -> None:
    distributed = getattr(hvd, distribute, DistributedGrawaOptimizer)(sgd(mlp()))
    with pytest.raises(ValueError, match="plain torch optimizer"):
        DistributedGrawaOptimizer(distributed)


@pytest.mark.horovod
def test_horovod_s_optimizer_is_not_made_of_this_one() -> None:
    model = mlp()
    with pytest.raises(TypeError, match=r"this SGD is distributed, .* make a plain SGD, and wrap that once"):
        hvd.DistributedOptimizer(wrap(model), named_parameters=model.named_parameters())


def test_num_groups_is_deprecated_and_means_groups() -> None:
    model = mlp()
    with pytest.warns(DeprecationWarning, match="num_groups"):
        optimizer = wrap(model, num_groups=2, period=1, pull=1.0)
    train(model, optimizer, range(2))
    assert equal_on_all_ranks(model)


@pytest.mark.parametrize("groups", ["one", "four", "more_than_tensors", "lists"])
def test_groups_change_the_messages_of_a_round_and_not_its_result(groups: str) -> None:
    results = []
    for grouped in (False, True):
        model = mlp()
        weight, bias = model[2].weight, model[0].bias
        chosen = {"one": 1, "four": 4, "more_than_tensors": 9, "lists": [[weight, bias]]}[groups]
        optimizer = wrap(model, groups=chosen if grouped else None)
        train(model, optimizer, range(4))
        results.append(copies(model))
    assert same(*results)


def test_two_optimizers_of_a_gan_take_turns_with_requires_grad() -> None:
    torch.manual_seed(0)
    generator, critic = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)
    both = [(part, wrap(part, sgd(part, 0.01), period=3, pull=1.0)) for part in (generator, critic)]
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(peers.rank()))
    trained_alone = []
    for turn in range(12):
        trained, optimizer = both[turn % 2]
        other, _ = both[1 - turn % 2]
        trained.requires_grad_(True)
        other.requires_grad_(False)
        for _, each in both:
            each.zero_grad()
        critic(generator(image)).square().mean().backward()
        before = copies(other)
        optimizer.step()
        trained_alone.append(all(p.grad is None for p in other.parameters()) and same(before, other.parameters()))
    assert [optimizer.rounds for _, optimizer in both] == [2, 2]
    assert all(trained_alone)
    assert equal_on_all_ranks([*generator.parameters(), *critic.parameters()])


def test_a_script_that_clips_inside_skip_synchronize_still_averages() -> None:
    model = mlp()
    optimizer = wrap(model, pull=1.0)
    clipped = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(4):
            optimizer.zero_grad()
            (100 * loss_of(model, step)).backward()
            optimizer.synchronize()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            clipped.append(bool(norm > 0.1))
            with optimizer.skip_synchronize():
                optimizer.step()
    assert all(clipped)
    assert optimizer.rounds == 2
    assert optimizer.last_round.scores.square().sum(dim=1).sqrt().max() < 0.11
    assert equal_on_all_ranks(model)


def test_step_after_synchronize_without_skip_synchronize_warns_once_and_averages() -> None:
    model = mlp()
    optimizer = wrap(model, period=1, pull=1.0)
    counts = []
    for synchronize in (False, True, False):
        loss_of(model, 0).backward()
        if synchronize:
            optimizer.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        texts = [str(warning.message) for warning in caught]
        counts.append(sum("optimizer.step() called without optimizer.skip_synchronize()" in text for text in texts))
        assert len(texts) == counts[-1]
    assert counts == [0, 1, 0]
    assert equal_on_all_ranks(model)


def test_skip_synchronize_ends_with_its_block_even_when_that_raises() -> None:
    model = mlp()
    optimizer = wrap(model)
    with pytest.raises(KeyError), optimizer.skip_synchronize():
        raise KeyError
    optimizer.synchronize()
    with pytest.warns(UserWarning, match="skip_synchronize"):
        train(model, optimizer, range(1))


def test_estimates_see_the_local_sum_of_the_backward_passes() -> None:
    model = mlp()
    optimizer = wrap(model, period=1, backward_passes_per_step=2)
    seen = []
    for passes in (2, 3):
        optimizer.set_backward_passes_per_step(passes)
        optimizer.zero_grad()
        for backward_pass in range(passes):
            loss_of(model, backward_pass).backward()
        norms = across([parameter.grad.norm()[None] for parameter in model.parameters()])
        optimizer.step()
        seen.append((optimizer.last_round.scores, norms))
    assert all(torch.allclose(scores, norms, rtol=1e-5) for scores, norms in seen)
    assert optimizer.backward_passes_per_step == 3
    assert optimizer.rounds == 2
    with pytest.raises(ValueError, match="backward_passes_per_step must be > 0"):
        optimizer.set_backward_passes_per_step(0)


def test_zero_grad_takes_set_to_none() -> None:
    model = mlp()
    optimizer = wrap(model)
    train(model, optimizer, range(2))
    optimizer.zero_grad(set_to_none=False)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
    for options in ({"set_to_none": True}, {}):
        set_gradients(model.parameters(), 1.0)
        optimizer.zero_grad(**options)
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.ranks(4)
def test_members_of_a_group_average_and_the_others_train_as_with_the_plain_optimizer(rank: int) -> None:
    model, alone = mlp(), mlp()
    with peers.members([1, 2, 3]) as group:
        optimizer, plain = wrap(model, sgd(model, momentum=0.9), pull=1.0, **group), sgd(alone, momentum=0.9)
        train(model, optimizer, range(5))
        train(alone, plain, range(5))
        members_rows, rounds = across(optimizer.center.values() if rank else model)[1:], from_all(optimizer.rounds)
    assert rounds == [0, 2, 2, 2]
    assert torch.equal(members_rows, members_rows[:1].expand_as(members_rows))
    if rank == 0:
        assert same(copies(model), copies(alone))
        assert optimizer.center is None
    else:
        assert optimizer.last_round.weights.shape == (3, 4)
        assert not same(copies(model), copies(alone))


@pytest.mark.ranks(4)
def test_two_groups_average_at_once_each_for_itself() -> None:
    model = mlp()
    with peers.members([0, 2], [1, 3]) as own:
        optimizer = wrap(model, pull=1.0, **own)
        train(model, optimizer, range(4))
        rows = across(model)
    assert optimizer.rounds == 2
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1], rows[3])
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("made", ["before_wrapping", "after_wrapping"])
def test_a_learning_rate_scheduler_governs_the_steps(made: str) -> None:
    model = mlp()
    plain = sgd(model, 0.4)
    scheduler = StepLR(plain, step_size=1, gamma=0.5) if made == "before_wrapping" else None
    optimizer = wrap(model, plain, proximity=0.0)
    scheduler = scheduler or StepLR(optimizer, step_size=1, gamma=0.5)
    moved = []
    with warnings.catch_warnings():
        # A scheduler made before the wrapping never sees its own optimizer step, here as with Horovod.
        warnings.filterwarnings("error" if made == "after_wrapping" else "ignore", message=".*lr_scheduler.step.*")
        for _ in range(4):
            set_gradients(model.parameters(), 1.0)
            before = model[0].weight.detach().clone()
            optimizer.step()
            scheduler.step()
            moved.append((before - model[0].weight).mean().item())
    assert moved == pytest.approx([0.4, 0.2, 0.1, 0.05], rel=1e-4)
    assert optimizer.rounds == 2


def test_step_takes_a_closure_and_returns_its_loss() -> None:
    model = mlp()
    optimizer = wrap(model, period=1, pull=1.0)
    called = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        called.append(loss)
        return loss

    assert optimizer.step(closure) is called[0]
    assert len(called) == 1
    assert optimizer.step(closure=closure) is called[1]
    assert optimizer.rounds == 2
    assert equal_on_all_ranks(model)


def test_lbfgs_with_its_closures_trains_and_averages() -> None:
    model = mlp()
    optimizer = wrap(model, torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure)) for _ in range(6)]
    assert optimizer.rounds == 3
    assert losses[-1] < losses[0]


def test_step_hooks_run_once_a_step_wherever_they_were_registered() -> None:
    model = mlp()
    plain = sgd(model)
    ran: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: ran.append(name)

    plain.register_step_pre_hook(hook("pre, before wrapping"))
    plain.register_step_post_hook(hook("post, before wrapping"))
    optimizer = wrap(model, plain)
    optimizer.register_step_pre_hook(hook("pre"))
    optimizer.register_step_post_hook(hook("post"))
    everywhere = [
        register_optimizer_step_pre_hook(hook("pre, global")),
        register_optimizer_step_post_hook(hook("post, global")),
    ]
    try:
        train(model, optimizer, range(2))
        StepLR(optimizer, 1)
        train(model, optimizer, range(2))
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, range(1))
    finally:
        for handle in everywhere:
            handle.remove()
    names = ["before wrapping", "global"]
    expected = [f"{when}, {name}" for when in ("pre", "post") for name in names] + ["pre", "post"]
    assert sorted(ran) == sorted(expected * 5)


def test_the_result_is_the_wrapped_class_to_users() -> None:
    model = mlp()
    plain = torch.optim.AdamW(model.parameters(), lr=0.1)
    optimizer = wrap(model, plain)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert type(optimizer).__name__ == "AdamW"
    assert type(optimizer) is not torch.optim.AdamW
    if peers.TRANSPORT == "horovod":
        assert type(optimizer).__module__ == type(hvd.DistributedOptimizer(plain)).__module__
    assert repr(optimizer).startswith("AdamW (")
    assert optimizer.param_groups is plain.param_groups
    assert optimizer.state is plain.state
    assert optimizer.defaults == plain.defaults


def test_state_that_the_wrapped_optimizer_had_is_kept() -> None:
    model, alone = mlp(), mlp()
    plain, wrapped = (torch.optim.Adam(m.parameters(), lr=0.1) for m in (alone, model))
    train(alone, plain, range(3))
    train(model, wrapped, range(3))
    optimizer = wrap(model, wrapped, period=100)
    train(alone, plain, range(3, 6))
    train(model, optimizer, range(3, 6))
    assert int(optimizer.state[model[0].weight]["step"]) == 6
    assert same(copies(model), copies(alone))


@pytest.mark.parametrize("named", [True, False])
def test_a_parameter_group_that_is_added_is_averaged_from_the_next_round_on(named: bool) -> None:
    model = mlp()
    body, head = list(model[0].parameters()), list(model[2].parameters())
    names = model.named_parameters() if named else None
    optimizer = DistributedGrawaOptimizer(torch.optim.SGD(body, lr=0.1), names, period=2, pull=1.0)
    train(model, optimizer, range(3))
    assert len(optimizer.center) == 2
    optimizer.add_param_group({"params": head, "lr": 0.2})
    train(model, optimizer, range(3, 4))
    assert optimizer.rounds == 2
    assert len(optimizer.center) == len(set(optimizer.last_round.layer_names)) == 4
    assert equal_on_all_ranks(model)
    if named:
        assert optimizer.last_round.layer_names == [name for name, _ in model.named_parameters()]
    train(model, optimizer, range(4, 6))
    assert bool((optimizer.last_round.scores > 0).all())


def test_a_parameter_group_that_is_added_is_averaged_with_layers_of_modules_too() -> None:
    model = mlp()
    optimizer = DistributedGrawaOptimizer(
        torch.optim.SGD(model[0].parameters(), lr=0.1), model[0].named_parameters(), period=1, layers="module"
    )
    train(model, optimizer, range(1))
    optimizer.add_param_group({"params": model[2].parameters()})
    train(model, optimizer, range(1))
    assert len(optimizer.center) == 4


def test_frozen_parameters_stay_as_they_are_and_do_not_travel_until_they_are_unfrozen(rank: int) -> None:
    model, whole = mlp(), mlp()
    model[0].requires_grad_(False)
    with torch.no_grad():
        model[0].weight += rank
    frozen = copies(model[0])
    optimizer, unfrozen = wrap(model, pull=1.0), wrap(whole, pull=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, range(4))
    train(whole, unfrozen, range(2))
    assert same(frozen, model[0].parameters())
    assert set(optimizer.center) == {"2.weight", "2.bias"}
    assert optimizer.last_round.bytes < unfrozen.last_round.bytes
    model[0].requires_grad_(True)
    train(model, optimizer, range(4, 6))
    assert optimizer.rounds == 3
    assert len(optimizer.center) == 4
    assert equal_on_all_ranks(model)


def test_a_model_that_is_frozen_whole_can_be_stepped() -> None:
    model = mlp()
    optimizer = wrap(model.requires_grad_(False), period=1)
    before = copies(model)
    for _ in range(2):
        optimizer.step()
    assert same(before, model.parameters())


@pytest.mark.parametrize("names", ["once", "twice", "none"])
def test_tied_parameters_are_averaged_once(names: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(4, 3), "decoder": nn.Linear(4, 3)})
    model["decoder"].weight = model["encoder"].weight
    named = {"once": model.named_parameters(), "twice": model.named_parameters(remove_duplicate=False), "none": None}
    optimizer = DistributedGrawaOptimizer(sgd(model), named[names], period=1, pull=1.0)
    generator = torch.Generator().manual_seed(peers.rank())
    for _ in range(2):
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=generator)
        (model["encoder"](x) - 2 * model["decoder"](x).sin()).square().mean().backward()
        optimizer.step()
    assert model["decoder"].weight is model["encoder"].weight
    assert len(optimizer.last_round.layer_names) == 3
    assert equal_on_all_ranks(model)


def test_complex_parameters_are_refused_by_name() -> None:
    model = nn.ParameterDict({"real": torch.zeros(2), "phase": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="phase is complex"):
        DistributedGrawaOptimizer(sgd(model), model.named_parameters())
    DistributedGrawaOptimizer(torch.optim.SGD([model["real"]], lr=0.1), model.named_parameters())


@pytest.mark.parametrize("tensors", [1, 500])
def test_models_of_one_and_of_many_tensors(tensors: int, rank: int) -> None:
    model = nn.ParameterList([torch.ones(3) for _ in range(tensors)])
    optimizer = wrap(model, period=1, pull=1.0)
    for _ in range(2):
        set_gradients(model, rank + 1.0)
        optimizer.step()
    assert len(optimizer.last_round.layer_names) == tensors
    assert torch.allclose(optimizer.last_round.weights.sum(dim=0), torch.ones(tensors, dtype=torch.float64))
    assert equal_on_all_ranks(model)


@pytest.mark.fault("gradients")
def test_a_layer_without_gradient_has_no_weight_where_others_have_one_and_equal_weight_if_none_has(
    rank: int, size: int
) -> None:
    model = nn.ParameterDict({name: torch.ones(3) for name in ("everywhere", "not_on_rank_0", "nowhere")})
    optimizer = wrap(model, sgd(model, momentum=0.9), period=1, pull=1.0)
    optimizer.zero_grad()
    set_gradients([model["everywhere"], *([model["not_on_rank_0"]] if rank else [])], 1.0)
    optimizer.step()
    weights = optimizer.last_round.weights
    assert optimizer.last_round.layer_names == list(model)
    assert equal_on_all_ranks(model)
    assert weights[:, 0].tolist() == pytest.approx([1 / size] * size)
    assert weights[:, 1].tolist() == pytest.approx([0.0] + [1 / (size - 1)] * (size - 1))
    assert weights[:, 2].tolist() == pytest.approx([1 / size] * size)
    assert torch.equal(model["nowhere"], torch.ones(3))


@pytest.mark.parametrize("sparse_as_dense", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.SparseAdam])
def test_the_score_of_a_sparse_gradient_is_the_norm_of_its_coalesced_values(kind: Any, sparse_as_dense: bool) -> None:
    torch.manual_seed(0)
    model = nn.Embedding(10, 3, sparse=True)
    optimizer = wrap(model, kind(list(model.parameters()), lr=0.1), sparse_as_dense=sparse_as_dense, period=1, pull=1.0)
    right = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([[1, 2, 4, 4], [4, 3, 2, peers.rank()]])).square().sum().backward()
        norms = across([model.weight.grad.coalesce().values().norm()[None]])
        optimizer.step()
        right.append(model.weight.grad.is_sparse and torch.allclose(optimizer.last_round.scores, norms, rtol=1e-5))
    assert right == [True] * 3
    assert equal_on_all_ranks(model)


def test_reported_losses_reach_the_report_of_every_rank(rank: int, size: int) -> None:
    model = mlp()
    optimizer = wrap(model)
    assert optimizer.last_round is None
    for step in range(2):
        optimizer.report(loss=rank + step)
        train(model, optimizer, [step])
    assert optimizer.last_round.losses.tolist() == [r + 0.5 for r in range(size)]
    optimizer.report(loss=torch.tensor(float(rank), requires_grad=True))
    train(model, optimizer, range(2))
    assert optimizer.last_round.losses.tolist() == list(range(size))
    train(model, optimizer, range(2))
    assert bool(optimizer.last_round.losses.isnan().all())


@pytest.mark.parametrize("value", [{"accuracy": 1.5}, {"samples": -1}, {"loss": torch.ones(2)}])
def test_a_bad_report_is_named_with_its_value(value: dict[str, Any]) -> None:
    (name,) = value
    with pytest.raises(ValueError, match=rf"{name} must be .*but is"):
        wrap(mlp()).report(**value)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "SGD, momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
    "SGD, Nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.02),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.05),
}


@pytest.mark.parametrize("averaging", ["uniform", "grawa", "mgrawa", "lgrawa"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_reduces_the_loss_of_the_mean_of_the_workers(name: str, averaging: str, size: int) -> None:
    model = mlp()
    optimizer = wrap(model, OPTIMIZERS[name](model), averaging=averaging, period=4)

    def loss() -> float:
        with torch.no_grad(), optimizer.consensus():
            return sum(float(loss_of(model, step, rank)) for step in range(4) for rank in range(size))

    before = loss()
    for _ in range(6):
        train(model, optimizer, range(4))
    assert loss() < 0.95 * before
    assert optimizer.rounds == 6

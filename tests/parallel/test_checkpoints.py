"""A run that is written down and taken up again goes on as if nothing had happened."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from models import across, copies, equal_on_all_ranks, errors, from_all, loss_of, mlp, same, sgd, train, wrap
from peers import hvd
from torch import nn

# Two ranks: with more, the backend decides in which order they are added, and so the last bit.
pytestmark = pytest.mark.ranks(2)

PLAIN: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": sgd,
    "momentum": lambda model: sgd(model, 0.05, momentum=0.9),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.02),
}


def new(kind: str, scores: str = "local", seed: int = 0, **options: Any) -> tuple[nn.Module, Any]:
    model = mlp(seed)

    def fresh() -> torch.Tensor:
        loss = loss_of(model, 100 + optimizer.rounds)
        loss.backward()
        return loss

    chosen: Any = fresh if scores == "fresh" else scores
    optimizer = wrap(model, PLAIN[kind](model), period=4, scores=chosen, **options)
    return model, optimizer


def written_and_read(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load(checkpoint: dict[str, Any], model: nn.Module, optimizer: Any) -> None:
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])


@pytest.mark.parametrize("stop", [1, 4, 6, 8])
@pytest.mark.parametrize(
    ("kind", "scores", "options"),
    [
        ("SGD", "local", {}),
        ("momentum", "local", {"outer_momentum": 0.6}),
        ("Adam", "fresh", {}),
        ("momentum", "fresh", {"outer_momentum": 0.6, "averaging": "grawa"}),
        ("Adam", "local", {"layers": "module", "averaging": "mgrawa", "pull": 1.0}),
        ("momentum", "local", {"averaging": "uniform", "groups": 2}),
    ],
)
def test_each_rank_continues_bitwise_from_its_own_checkpoint(
    kind: str, scores: str, options: dict[str, Any], stop: int
) -> None:
    model, optimizer = new(kind, scores, **options)
    train(model, optimizer, range(stop))
    checkpoint = written_and_read(model, optimizer)
    again, resumed = new(kind, scores, seed=7, **options)
    load(checkpoint, again, resumed)
    centers = (optimizer.center, resumed.center)
    assert resumed.rounds == optimizer.rounds == stop // 4
    assert (centers[0] is None) == (centers[1] is None)
    assert centers[0] is None or same(centers[0].values(), centers[1].values())
    train(model, optimizer, range(stop, 14))
    train(again, resumed, range(stop, 14))
    assert resumed.rounds == optimizer.rounds == 3
    assert same(copies(model), copies(again))
    assert optimizer.center.keys() == resumed.center.keys()
    assert same(optimizer.center.values(), resumed.center.values())
    assert torch.equal(optimizer.last_round.weights, resumed.last_round.weights)
    assert torch.equal(optimizer.last_round.losses, resumed.last_round.losses) or scores == "local"
    assert resumed.last_round.step == optimizer.last_round.step == 12


def test_losses_reported_before_a_checkpoint_count_after_it() -> None:
    model, optimizer = new("SGD")
    optimizer.report(loss=1.0)
    train(model, optimizer, range(2))
    again, resumed = new("SGD")
    load(written_and_read(model, optimizer), again, resumed)
    resumed.report(loss=torch.tensor(3.0))
    train(again, resumed, range(2, 4))
    assert resumed.last_round.losses.tolist() == [2.0] * peers.size()


@pytest.mark.horovod
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("stop", [2, 4, 7])
@pytest.mark.parametrize("outer_momentum", [0.0, 0.6])
def test_all_ranks_take_over_what_rank_0_alone_loaded_and_broadcast(
    kind: str, stop: int, outer_momentum: float, rank: int
) -> None:
    """Horovod's idiom: rank 0 reads the file, and the two broadcasts do the rest."""
    model, optimizer = new(kind, outer_momentum=outer_momentum)
    train(model, optimizer, range(stop))
    checkpoint = written_and_read(model, optimizer)
    again, resumed = new(kind, seed=7, outer_momentum=outer_momentum)
    if rank == 0:
        load(checkpoint, again, resumed)
    peers.broadcast(again)
    hvd.broadcast_optimizer_state(resumed, root_rank=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(again, resumed, range(stop, stop + 1))
    places = from_all((resumed.rounds, resumed.state_dict()["grawa"]["steps"]))
    center = resumed.center
    assert places == [((stop + 1) // 4, stop + 1)] * peers.size()
    assert (center is None) == (stop + 1 < 4)
    assert center is None or equal_on_all_ranks(center.values())
    if stop == 4:  # the centre of the first round, that of the checkpoint
        assert same(optimizer.center.values(), center.values())
    train(again, resumed, range(stop + 1, 12))
    assert from_all(resumed.rounds) == [3] * peers.size()
    assert equal_on_all_ranks(resumed.center.values())


@pytest.mark.horovod
@pytest.mark.fault("astray")
def test_a_load_on_rank_0_alone_in_the_middle_of_a_run_is_an_error_on_every_rank(rank: int) -> None:
    """Scripts that go back to the best checkpoint load it on every rank, or would part from the others' count."""
    model, optimizer = new("momentum")
    train(model, optimizer, range(5))
    checkpoint = written_and_read(model, optimizer)
    train(model, optimizer, range(5, 7))
    if rank == 0:
        load(checkpoint, model, optimizer)
    peers.broadcast(model)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    found = errors(lambda: train(model, optimizer, range(7, 15)))
    assert [kind for kind, _ in found] == ["RanksOutOfStepError"] * peers.size()
    assert all("rank 0 loaded a checkpoint, or called recenter(), while" in text for _, text in found)


def test_every_rank_can_go_back_to_a_checkpoint_in_the_middle_of_a_run() -> None:
    model, optimizer = new("momentum")
    train(model, optimizer, range(5))
    checkpoint = written_and_read(model, optimizer)
    train(model, optimizer, range(5, 15))
    once = copies(model)
    load(checkpoint, model, optimizer)
    train(model, optimizer, range(5, 15))
    assert same(copies(model), once)


def test_a_plain_checkpoint_loads_into_a_fresh_optimizer_without_a_word() -> None:
    alone = mlp()
    plain = PLAIN["Adam"](alone)
    train(alone, plain, range(3))
    model, optimizer = new("Adam")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(written_and_read(alone, plain), model, optimizer)
    assert int(optimizer.state[model[0].weight]["step"]) == 3
    train(alone, plain, range(3, 6))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the initial parameters")  # each trained alone
        train(model, optimizer, range(3, 6))
    assert same(copies(alone), copies(model))
    assert optimizer.rounds == 0


def test_a_plain_checkpoint_that_loads_into_a_run_starts_the_averaging_afresh_and_says_so() -> None:
    model, optimizer = new("momentum")
    train(model, optimizer, range(6))
    fresh = mlp()
    with pytest.warns(UserWarning, match="averaging starts afresh"):
        load(written_and_read(fresh, PLAIN["momentum"](fresh)), model, optimizer)
    assert optimizer.rounds == 0
    assert optimizer.center is None
    assert optimizer.last_round is None
    again, other = new("momentum")
    train(model, optimizer, range(5))
    train(again, other, range(5))
    assert optimizer.rounds == 1
    assert same(copies(model), copies(again))


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_optimizer_continues_from_our_checkpoint(kind: str) -> None:
    model, optimizer = new(kind)
    train(model, optimizer, range(5))
    again = mlp()
    plain = PLAIN[kind](again)
    load(written_and_read(model, optimizer), again, plain)
    assert same(copies(model), copies(again))
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        values, expected = plain.state.get(theirs, {}), optimizer.state.get(mine, {})
        assert values.keys() == expected.keys()
        assert all(values[key] is None or torch.equal(values[key], expected[key]) for key in values)
    train(again, plain, range(2))


def test_state_dict_has_the_keys_of_torch_and_one_more() -> None:
    model, optimizer = new("Adam")
    fresh = optimizer.state_dict()
    assert fresh.keys() - {"grawa"} == {"state", "param_groups"}
    train(model, optimizer, range(5))
    plain = PLAIN["Adam"](model)
    train(model, plain, range(1))
    state = optimizer.state_dict()
    assert state.keys() == {"state", "param_groups", "grawa"}
    assert state["state"].keys() == plain.state_dict()["state"].keys()
    assert state["param_groups"][0].keys() == plain.state_dict()["param_groups"][0].keys()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))], ids=["deepcopy", "pickle"]
)
def test_copies_of_a_state_dict_do_not_follow_the_run(copied: Callable[[Any], Any]) -> None:
    model, optimizer = new("momentum", outer_momentum=0.5)
    train(model, optimizer, range(6))
    state, parameters = copied(optimizer.state_dict()), copies(model)
    train(model, optimizer, range(6, 12))
    results = []
    for _ in range(2):
        again, resumed = new("momentum", outer_momentum=0.5)
        again.load_state_dict(dict(zip(model.state_dict(), parameters, strict=True)))
        resumed.load_state_dict(copied(state))  # torch keeps tensors of the state that it loads
        train(again, resumed, range(6, 12))
        results.append(copies(again))
    assert same(copies(model), results[0])
    assert same(copies(model), results[1])


def test_a_loaded_optimizer_does_not_share_memory_with_the_state_it_was_given() -> None:
    model, optimizer = new("momentum", outer_momentum=0.5)
    train(model, optimizer, range(5))
    state = optimizer.state_dict()
    before = copy.deepcopy(state["grawa"])
    _, resumed = new("momentum", outer_momentum=0.5)
    resumed.load_state_dict(state)
    train(model, resumed, range(5, 9))
    for number, tensors in before["state"].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, state["grawa"]["state"][number][name])
    assert torch.equal(before["estimates"]["sums"], state["grawa"]["estimates"]["sums"])


def test_a_checkpoint_of_another_model_is_refused_by_the_parameters_name() -> None:
    model, optimizer = new("SGD")
    train(model, optimizer, range(4))
    state = optimizer.state_dict()
    wider = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"0\.weight has shape \(3, 4\)"):
        wrap(wider).load_state_dict(state)


def test_parameters_added_after_a_round_are_part_of_the_checkpoint() -> None:
    def made() -> tuple[nn.Module, Any]:
        model = mlp()
        body = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
        return model, wrap(model, body, outer_momentum=0.5)

    model, optimizer = made()
    train(model, optimizer, range(3))
    optimizer.add_param_group({"params": model[2].parameters()})
    train(model, optimizer, range(3, 5))
    checkpoint = written_and_read(model, optimizer)
    again, resumed = made()
    resumed.add_param_group({"params": again[2].parameters()})
    load(checkpoint, again, resumed)
    train(model, optimizer, range(5, 9))
    train(again, resumed, range(5, 9))
    assert same(copies(model), copies(again))
    assert across(resumed.center.values()).shape == across(model).shape

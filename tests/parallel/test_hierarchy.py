"""Rounds among the workers of a host, between those of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import peers
import pytest
import torch
from learner import compare, too_large
from models import across, continued, equal_on_all_ranks, errors, from_all, mlp, sgd, train, wrap
from peers import hvd
from simulation import Scheme

EVEN, UNEVEN, CROSSED, ONE = (0, 0, 1, 1), (0, 1, 1, 1), (0, 1, 0, 1), (0, 0)


@pytest.fixture(scope="module")
def process_sets() -> Iterator[Callable[[tuple[int, ...]], None]]:
    """Lets Horovod keep the process sets of some hosts alone; none after the last test of this file.

    Sets are made through the launcher, which is slow to answer on a loaded machine, and each slows every sum down. So
    tests of the same hosts stand side by side and share them, as the optimizers of a job do.
    """

    def keep(host_of: tuple[int, ...]) -> None:
        if peers.TRANSPORT == "torch":
            return
        wanted = [[rank for rank, host in enumerate(host_of) if host == each] for each in set(host_of)]
        for number, ranks in sorted(hvd.mpi_ops._basics._get_process_set_ids_and_ranks().items()):
            if number != hvd.global_process_set.process_set_id and ranks not in wanted:
                made = hvd.ProcessSet(ranks)
                made.process_set_id = number
                hvd.remove_process_set(made)

    yield keep
    keep(())


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, rank: int, process_sets: Any) -> Callable[[tuple[int, ...]], None]:
    """Makes ranks believe, by the variable that the launcher sets, that they run on several hosts."""
    variable = "HOROVOD_HOSTNAME" if peers.TRANSPORT == "horovod" else "GROUP_RANK"

    def on(host_of: tuple[int, ...]) -> None:
        process_sets(host_of)
        monkeypatch.setenv(variable, str(host_of[rank]))

    return on


@pytest.mark.ranks(4)
def test_hosts_tell_of_their_rounds_and_the_common_one_stays_the_last(hosts: Any, rank: int) -> None:
    hosts(UNEVEN)
    model, reports = mlp(), []
    optimizer = wrap(model, period=4, local_period=2, on_round=reports.append)
    train(model, optimizer, range(9))
    told = from_all([(report.step, report.within_host, tuple(report.weights.shape)) for report in reports])
    common = [(4, False, (4, 4)), (8, False, (4, 4))]
    within = [(2, True, (3, 4)), *common[:1], (6, True, (3, 4)), *common[1:]]
    assert told == [common, within, within, within]
    assert optimizer.last_round is [report for report in reports if not report.within_host][-1]
    assert from_all(optimizer.rounds) == [2] * 4
    assert equal_on_all_ranks(optimizer.center.values())


SCHEMES = {
    "uneven": Scheme("grawa", period=6, local_period=2, host_of=UNEVEN, proximity=0.3, pull=0.3),
    "uneven-overlap": Scheme("lgrawa", local_period=2, host_of=UNEVEN, overlap=3, proximity=0.3, outer_momentum=0.5),
    "uniform-uneven-fragments": Scheme(
        "uniform", period=5, local_period=2, host_of=UNEVEN, fragment_of=(0, 1, 1, 1), outer_momentum=0.5
    ),
    "crossed-fresh": Scheme("mgrawa", "fresh", local_period=1, host_of=CROSSED, proximity=0.3, pull=1.0),
    "even": Scheme("lgrawa", period=5, local_period=2, host_of=EVEN, proximity=0.3, outer_momentum=0.7),
    "even-overlap-fresh": Scheme("grawa", "fresh", period=5, local_period=3, host_of=EVEN, overlap=2, proximity=0.3),
    "even-fragments": Scheme("lgrawa", period=6, local_period=1, host_of=EVEN, fragment_of=(0, 1, 2, 2), proximity=0.3),
}


@pytest.mark.ranks(4)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_rounds_within_hosts_follow_the_formulas(scheme: Scheme, hosts: Any) -> None:
    hosts(scheme.host_of)
    assert not too_large(compare(scheme, steps=18))


ON_ONE_HOST = {
    "plain": Scheme(local_period=3, host_of=ONE, proximity=0.3),
    "all": Scheme(
        "grawa", period=6, local_period=1, host_of=ONE, overlap=2, fragment_of=(0, 1, 1, 1), proximity=0.3,
        outer_momentum=0.5, momentum=0.9, lr=0.02,
    ),
}  # fmt: skip


@pytest.mark.ranks(2)
@pytest.mark.parametrize("scheme", ON_ONE_HOST.values(), ids=ON_ONE_HOST)
def test_one_host_alone_follows_the_formulas(scheme: Scheme, hosts: Any) -> None:
    hosts(scheme.host_of)
    assert not too_large(compare(scheme, steps=18))


@pytest.mark.ranks(4)
@pytest.mark.parametrize("diverged", [[2], [2, 3]], ids=["one-of-a-host", "a-whole-host"])
@pytest.mark.fault("diverged")
def test_a_host_brings_back_its_own_and_the_common_round_a_whole_host(
    diverged: list[int], hosts: Any, rank: int
) -> None:
    hosts(EVEN)
    model = mlp()
    optimizer = wrap(model, sgd(model, 0.05, momentum=0.9), period=6, local_period=2)
    train(model, optimizer, range(7))
    if rank in diverged:
        model[0].weight.data[0, 0] = torch.nan
    finite = []
    for step in range(7, 18):
        train(model, optimizer, [step])
        finite.append(bool(across(model).isfinite().all()))
    back = 0 if len(diverged) == 1 else 4  # steps 8 and 12
    assert finite == [False] * back + [True] * (len(finite) - back)
    assert bool((optimizer.last_round.weights > 0).all())


@pytest.mark.horovod
@pytest.mark.ranks(4)
@pytest.mark.fault("data")
def test_a_host_whose_worker_has_joined_waits_for_it_without_holding_up_the_others(hosts: Any, rank: int) -> None:
    hosts(EVEN)
    model, reports = mlp(), []
    optimizer = wrap(model, period=4, local_period=2, on_round=reports.append)
    for epoch in range(2):
        for step in range(3 if rank == 0 else 8):
            train(model, optimizer, [10 * epoch + step])
        hvd.join()
    within = from_all(sum(report.within_host for report in reports))
    with optimizer.consensus():
        assert equal_on_all_ranks(model)
    assert within[2] == within[3] >= within[1] >= 1


@pytest.mark.ranks(2)
def test_a_checkpoint_between_the_rounds_of_a_host_continues_bitwise(hosts: Any) -> None:
    hosts(ONE)
    assert continued({"period": 6, "local_period": 2, "proximity": 0.5, "outer_momentum": 0.4}, before=9, after=10)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("local_period", [0, 4, -1, True])
def test_a_local_period_out_of_range_is_refused_on_every_rank(local_period: Any) -> None:
    found = errors(lambda: wrap(mlp(), period=4, local_period=local_period))
    assert [kind for kind, _ in found] == ["ValueError"] * peers.size()
    assert all(f"local_period must be an integer from 1 to 3, but is {local_period!r}" in text for _, text in found)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("option", [{"overlap": 1}, {"fragments": 2}, {"local_period": 2}], ids=str)
@pytest.mark.fault("differ")
def test_settings_that_differ_are_the_same_error_everywhere(option: dict[str, Any], rank: int) -> None:
    """One rank that had waited for the others in the constructor would have waited for ever."""
    model = mlp()
    found = errors(lambda: train(model, wrap(model, period=4, **(option if rank else {})), range(5)))
    assert [kind for kind, _ in found] == ["ValueError"] * peers.size()
    assert len({text for _, text in found}) == 1
    assert next(iter(option)) in found[0][1]
    assert "rank 1" in found[0][1]


@pytest.mark.horovod
def test_hosts_without_process_sets_are_refused_at_once_on_every_rank(
    monkeypatch: pytest.MonkeyPatch, process_sets: Any
) -> None:
    process_sets(())
    monkeypatch.setenv("HOROVOD_DYNAMIC_PROCESS_SETS", "0")
    alone = errors(lambda: wrap(mlp(), period=4, local_period=2))
    monkeypatch.setattr(hvd, "local_size", lambda: 1)  # as on several hosts
    found = errors(lambda: wrap(mlp(), period=4, local_period=2))
    assert alone == [("", "")] * peers.size()
    assert all(kind == "ValueError" and 'hvd.init(process_sets="dynamic")' in said for kind, said in found)

"""What ranks tell each other before they do anything together, over workers in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import grawa_hvd
from grawa_hvd.rounds.agreement import Terms
from grawa_hvd.rounds.handshake import Handshake, check
from grawa_hvd.rounds.rows import BEFORE_COLUMNS, Header, Measured, Progress, Reason, Row, Rows, headers, present
from grawa_hvd.transport.local import LocalTransport, run_workers


def row(reason: Reason, terms: Terms, columns: int = 2, handshakes: int = 0, **place: int) -> Row:
    header = Header(reason, terms.digest, handshakes=handshakes, length=4, **place)
    measured = Measured(0.0, 1.0, torch.tensor(True), 3.0, 4.0, torch.tensor(5.0))
    if reason is Reason.NOTHING:
        measured = Measured()
    return Row(header, measured, torch.full((columns,), 7.0, dtype=torch.float64))


def caught(work: Callable[[LocalTransport], Any], workers: int = 2) -> list[tuple[str, str]]:
    """Type and text of what each worker raised."""

    def run(transport: LocalTransport) -> tuple[str, str]:
        try:
            work(transport)
        except Exception as error:
            return type(error).__name__, str(error)
        return "", ""

    return run_workers(workers, run)


def test_all_get_the_rows_of_all() -> None:
    terms = Terms(["a", "b"])

    def meet(transport: LocalTransport) -> Rows:
        return Handshake(transport).exchange(row(Reason.ROUND, terms, steps=transport.rank), terms)

    for rows in run_workers(3, meet):
        assert rows.size == 3
        assert rows.present == rows.came_for(Reason.ROUND) == [0, 1, 2]
        assert [header.progress for header in rows.header.values()] == [Progress(rank) for rank in range(3)]
        assert rows.leader == 2
        assert rows.bytes == 3 * 8 * (BEFORE_COLUMNS + 2)
        assert rows.distances == [0.0] * 3
        assert rows.losses.tolist() == [3.0] * 3


@pytest.mark.fault("data")
def test_one_who_has_left_counts_for_nothing() -> None:
    terms = Terms(["a"])

    def meet(transport: LocalTransport) -> Rows | None:
        if transport.rank == 1:
            transport.leave()
            return None
        return Handshake(transport).exchange(row(Reason.ROUND, terms), terms)

    rows = run_workers(3, meet)[0]
    assert rows is not None
    assert rows.present == rows.finite == [0, 2]
    assert rows.usable.tolist() == [True, False, True]
    assert rows.losses.isnan().tolist() == [False, True, False]


def test_one_who_follows_is_there_and_counts_for_nothing() -> None:
    terms = Terms(["a"])

    def meet(transport: LocalTransport) -> Rows:
        reason = Reason.NOTHING if transport.rank == 1 else Reason.ROUND
        return Handshake(transport).exchange(row(reason, terms), terms)

    rows = run_workers(2, meet)[0]
    assert rows.present == rows.finite == [0]
    assert rows.usable.tolist() == [True, False]


@pytest.mark.parametrize("columns", [(2, 2), (2, 5), (5, 0)], ids=str)
@pytest.mark.fault("differ")
def test_terms_that_differ_are_an_error_that_names_the_first_line(columns: tuple[int, int]) -> None:
    def meet(transport: LocalTransport) -> None:
        terms = Terms(["alike", f"own {transport.rank}", "later"])
        Handshake(transport).exchange(row(Reason.ROUND, terms, columns[transport.rank]), terms)

    message = "the workers' models or settings differ, first in: 'own 0' on rank 0; 'own 1' on rank 1"
    assert caught(meet) == [("ValueError", message)] * 2


@pytest.mark.parametrize("alone", [pytest.param(True, marks=pytest.mark.fault("differ")), False])
def test_terms_that_change_in_a_run_are_an_error_unless_they_change_everywhere(alone: bool) -> None:
    """Also where rows are of another length afterwards."""

    def meet(transport: LocalTransport) -> None:
        shake, terms = Handshake(transport), Terms(["before"])
        for _ in range(2):
            shake.exchange(row(Reason.ROUND, terms, 2), terms)
        if transport.rank == 0 or not alone:
            terms = Terms(["after"])
        for _ in range(2):
            rows = shake.exchange(row(Reason.ROUND, terms, 2 if terms.lines == ["before"] else 6), terms)
            assert rows.bytes == 2 * 8 * (BEFORE_COLUMNS + 6)

    message = "the workers' models or settings differ, first in: 'after' on rank 0; 'before' on rank 1"
    assert caught(meet) == [("ValueError", message) if alone else ("", "")] * 2


@pytest.mark.fault("late")
def test_one_who_knows_nothing_yet_meets_those_who_have_agreed() -> None:
    """As after an empty first epoch: its first row is a header alone, and the others' are not."""
    terms = Terms(["a"])

    def meet(transport: LocalTransport) -> int:
        shake = Handshake(transport)
        if transport.rank == 0:
            shake._length = BEFORE_COLUMNS + 2  # as one who has met others
        return len(shake.exchange(row(Reason.ROUND, terms), terms).present)

    assert run_workers(2, meet) == [2, 2]


def rows_of(*given: Row) -> Rows:
    matrix = torch.stack([one.pack() for one in given])
    return Rows(matrix, present(headers(matrix)))


@pytest.fixture
def transport() -> LocalTransport:
    return run_workers(1, lambda transport: transport.subgroup([0, 0, 0]))[0]


def test_a_load_on_one_rank_alone_is_told_from_an_arrival(transport: LocalTransport) -> None:
    terms = Terms(["a"])
    under_way = row(Reason.ROUND, terms, handshakes=5, steps=9, rounds=2)
    check(rows_of(under_way, row(Reason.ARRIVAL, terms, handshakes=3)), None, transport)
    check(rows_of(row(Reason.ARRIVAL, terms, handshakes=5), row(Reason.ARRIVAL, terms, handshakes=5)), None, transport)
    with pytest.raises(grawa_hvd.RanksOutOfStepError, match="loaded a checkpoint, or called recenter"):
        check(rows_of(under_way, row(Reason.ARRIVAL, terms, handshakes=5)), None, transport)


def test_a_round_and_the_consensus_do_not_meet(transport: LocalTransport) -> None:
    terms = Terms(["a"])
    with pytest.raises(
        grawa_hvd.RanksOutOfStepError, match=r"not all of them call consensus\(\).*must call leave\(\) first"
    ):
        check(rows_of(row(Reason.ROUND, terms), row(Reason.CONSENSUS, terms)), None, transport)


def test_what_the_user_raised_is_raised_there_and_told_elsewhere(transport: LocalTransport) -> None:
    terms = Terms(["a"])
    failed = row(Reason.ROUND, terms)
    failed.header = failed.header._replace(failed=1)
    rows = rows_of(failed, row(Reason.ROUND, terms))
    with pytest.raises(ZeroDivisionError):
        check(rows, ZeroDivisionError(), transport)
    with pytest.raises(grawa_hvd.ScoresError, match="on rank 0"):
        check(rows, None, transport)


def test_who_missed_rounds_is_behind() -> None:
    terms = Terms(["a"])
    behind = row(Reason.ROUND, terms, steps=7, rounds=3)
    rows = rows_of(behind, row(Reason.ROUND, terms, steps=5, rounds=4), row(Reason.ARRIVAL, terms))
    assert (rows.leader, rows.witness, rows.behind, rows.arriving) == (0, 1, [0], [2])


@pytest.mark.fault("raises")
def test_a_period_that_raises_on_one_rank_is_an_error_on_all() -> None:
    def train(transport: LocalTransport) -> None:
        def period(progress: Progress) -> int:
            if transport.rank == 1 and progress.rounds:
                raise ZeroDivisionError("no such period")
            return 1

        model = nn.ParameterList([torch.zeros(2)])
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            model.named_parameters(),
            process_group=transport,
            period=period,
        )
        for _ in range(4):
            model[0].grad = torch.ones(2)
            optimizer.step()

    assert [kind for kind, _ in caught(train)] == ["ScoresError", "ZeroDivisionError"]


@pytest.mark.parametrize("returned", [0, 2.5, None], ids=str)
@pytest.mark.fault("raises")
def test_a_period_out_of_range_on_the_rank_that_leads_is_an_error_on_all(returned: Any) -> None:
    def train(transport: LocalTransport) -> None:
        model = nn.ParameterList([torch.zeros(2)])
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), process_group=transport,
            period=lambda progress: returned if transport.rank == 0 else 3,
        )  # fmt: skip
        model[0].grad = torch.ones(2)
        optimizer.step()

    found = caught(train)
    assert found[0][0] == "ValueError"
    assert found[0][1].startswith("period must return an integer") and found[0][1].endswith(f"returned {returned}")
    assert found[1] == found[0] if returned == 0 else found[1][0] == "ScoresError"


@pytest.mark.fault("order")
def test_parameters_that_come_in_another_order_on_some_rank_meet_by_name() -> None:
    def work(transport: LocalTransport) -> tuple[list[str], list[float]]:
        values = {"a": torch.tensor([1.0]), "b": torch.tensor([2.0, 2.0]), "c": torch.tensor([3.0])}
        model = nn.ParameterDict({name: values[name] for name in ("abc", "cab", "abc")[transport.rank]})
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0), model.named_parameters(), process_group=transport,
            averaging="uniform", period=1, pull=1.0,
        )  # fmt: skip
        for number, name in enumerate("abc"):
            model[name].grad = torch.full_like(model[name], transport.rank * (number + 1.0))
        optimizer.step()
        assert optimizer.last_round is not None
        return optimizer.last_round.layer_names, [model[name][0].item() for name in "abc"]

    # The mean gradients are 1, 2 and 3.
    assert run_workers(3, work) == [(["a", "b", "c"], pytest.approx([0.0, 0.0, 0.0], abs=1e-6))] * 3

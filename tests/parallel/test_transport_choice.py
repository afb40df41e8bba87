"""Over what an optimizer averages: what the user names, else Horovod if it is up, else torch.distributed."""

from __future__ import annotations

from typing import Any

import peers
import pytest
import torch.distributed as dist
from models import equal_on_all_ranks, errors, mlp, train, wrap
from peers import hvd

pytestmark = pytest.mark.ranks(2)


def test_with_nothing_initialised_the_error_names_both_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    if peers.TRANSPORT == "horovod":
        monkeypatch.setattr(hvd, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match="nothing is initialised") as caught:
        wrap(mlp())
    assert "hvd.init()" in str(caught.value)
    assert "torch.distributed.init_process_group()" in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [("process_set", "process_group"), ("process_group", "device_mesh"), ("process_set", "device_mesh")],
    ids=" and ".join,
)
def test_two_groups_for_one_optimizer_are_refused_by_name(names: tuple[str, str]) -> None:
    found = errors(lambda: wrap(mlp(), **dict.fromkeys(names, object())))
    assert found == [("ValueError", f"only one of {' and '.join(names)} can say who averages with whom")] * 2


@pytest.mark.horovod
def test_horovod_comes_first_where_both_are_up_and_torch_where_it_is_named() -> None:
    from benchmarks.ranks import torch_group  # noqa: PLC0415  (it imports Horovod)

    sums: list[Any] = []
    with torch_group(), pytest.MonkeyPatch.context() as patch:
        all_reduce = dist.all_reduce
        patch.setattr(dist, "all_reduce", lambda *a, **k: sums.append(None) or all_reduce(*a, **k))
        for options, over_torch in (({}, False), ({"process_group": dist.group.WORLD}, True)):
            sums.clear()
            model = mlp()
            train(model, wrap(model, pull=1.0, **options), range(4))
            assert bool(sums) == over_torch
            assert equal_on_all_ranks(model)

"""Parameters keep the names that they were given, or got when they came, wherever in the groups they go."""

from __future__ import annotations

import torch
from torch import nn

from grawa_hvd.model.names import OwnedNames, unnamed


def test_names_stay_and_are_unique_where_groups_are_edited_in_place() -> None:
    a, b, c, d, e = (nn.Parameter(torch.zeros(1)) for _ in range(5))
    optimizer = torch.optim.SGD([a, b, c], lr=0.1)
    owned = OwnedNames(optimizer, dict(unnamed(optimizer.param_groups)))
    first = dict(owned.current())
    (group,) = optimizer.param_groups
    group["params"] = [b, c, d]  # as where one adapter takes the place of another
    second = dict(owned.current())
    assert [second[b], second[c]] == [first[b], first[c]]
    group["params"] = [c, d, e]
    third = dict(owned.current())
    assert [third[c], third[d]] == [first[c], second[d]]
    assert all(len(set(names.values())) == 3 for names in (first, second, third))
    group["params"] = [a, b, c]
    assert owned.current() == first

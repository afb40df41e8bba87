"""`copy.deepcopy` of a distributed optimizer."""

from __future__ import annotations

import copy
from typing import Any

import torch


def copied(optimizer: Any, memo: dict[int, Any]) -> Any:
    """Another optimizer of the same workers, of parameters that are copied unless they are in `memo`.

    Args:
        optimizer: the wrapper.
        memo: `copy.deepcopy`'s: id of an object → its copy.
    """
    kept = optimizer._worker.state_dict(optimizer._numbers())
    plain = optimizer._wrapped.__new__(optimizer._wrapped)
    wrapper: Any = type(optimizer)
    memo[id(optimizer)] = result = wrapper.__new__(wrapper)
    plain.__setstate__(copy.deepcopy(optimizer._wrapped.__getstate__(optimizer), memo))
    names, settings, wire, on_round, fused = optimizer._made_with
    owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ids = set(map(id, owned))
    own_names = {memo[id(p)]: name for p, name in names.items() if id(p) in ids}
    result._adopt(plain, own_names, settings.copied(memo), wire.again(), on_round, fused)
    result.backward_passes_per_step = optimizer.backward_passes_per_step
    with torch.no_grad():  # a round that was under way has been finished since the model was copied
        for tensor in (*owned, *settings.buffers.tensors):
            memo[id(tensor)].copy_(tensor)
    result._worker.load_state_dict(copy.deepcopy(kept), result._numbers())
    return result

"""A long run costs no more memory than a short one, and its counters go on where 32 bits end.

GRAWA_LONG_RUN=100000 asks for so many steps.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor
from workers import Learner, learn

STEPS = int(os.environ.get("GRAWA_LONG_RUN", "6000"))
PERIOD = 8
C = ctypes.CDLL(None)


class Kept(NamedTuple):
    """What is there at one time: bytes that malloc has given out, blocks that Python has, objects that it tracks,
    tensors, entries of a world.

    Not the size of the process: holes in the heap and pages of libraries make it grow by MiB while nothing is kept.
    """

    given: int
    blocks: int
    objects: int
    tensors: int
    entries: int


class Given(ctypes.Structure):
    """What glibc says of its heap."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def kept(transport: Any) -> Kept:
    gc.collect()
    C.mallinfo2.restype = Given
    heap, blocks = C.mallinfo2(), sys.getallocatedblocks()
    objects = gc.get_objects()
    world = transport._world
    return Kept(
        heap.uordblks + heap.hblkhd, blocks, len(objects), sum(issubclass(type(one), Tensor) for one in objects),
        len(world.buffers) + len(world.taken) + len(world.groups) + len(transport._uses),
    )  # fmt: skip


@pytest.mark.skipif(not hasattr(C, "mallinfo2"), reason="needs glibc 2.33 or later")
@pytest.mark.parametrize(
    "options",
    [{}, {"averaging": "edit", "overlap": 2, "fragments": 2, "outer_momentum": 0.5, "proximity": 0.1},
     {"averaging": "decentralized"}],
    ids=["sums", "everything", "neighbors"],
)  # fmt: skip
def test_memory_stays_flat(options: dict[str, Any]) -> None:
    meet = threading.Barrier(2, timeout=600)

    def work(learner: Learner) -> list[Kept]:
        parameters, gradients = list(learner.model), [torch.ones_like(one) for one in learner.model]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        found = []
        for _ in range(4):
            for _ in range(STEPS // 4):
                learner.optimizer.report(loss=1.0)
                learner.optimizer.step()
                learner.reports.clear()
            with learner.optimizer.consensus():
                pass
            meet.wait()
            if learner.rank == 0:
                found.append(kept(learner.optimizer._transport))
            meet.wait()
        assert learner.optimizer.rounds == STEPS // PERIOD * options.get("fragments", 1)
        return found

    found = learn(2, work, **{"averaging": "lgrawa", "period": PERIOD, "pull": 0.5, "proximity": 0.01, **options})[0]
    first, last = found[1], found[-1]
    assert last.tensors <= first.tensors
    assert last.entries <= first.entries
    assert last.objects <= first.objects + 50  # of pytest and the threads; the rounds between are hundreds
    assert last.blocks <= first.blocks + 200  # fewer than there are rounds between
    assert last.given <= first.given + 2**15  # 90 bytes a round; what each thread has at hand comes and goes


@pytest.mark.parametrize("start", [2**31 - 6, 2**32 - 6, 2**52])
def test_counters_go_on_beyond_32_bits(start: int) -> None:
    def work(learner: Learner) -> tuple[list[int], int, int, Tensor]:
        learner.step(4)
        state = learner.optimizer.state_dict()
        state["grawa"].update(steps=start, rounds=start)
        learner.optimizer.load_state_dict(state)
        learner.reports.clear()
        learner.step(12)
        return (
            learner.rounds(),
            learner.optimizer.rounds,
            learner.optimizer.state_dict()["grawa"]["steps"],
            learner.flat(),
        )

    first, second = learn(2, work)
    assert torch.equal(first[3], second[3])
    assert first[:3] == second[:3] == ([start + 4, start + 8, start + 12], start + 3, start + 12)

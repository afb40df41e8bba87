"""CUDA graphs: a local step is not to be captured, since a replay runs kernels and no Python."""

from __future__ import annotations

from typing import Any

import torch


def is_capturing(param_groups: list[dict[str, Any]]) -> bool:
    """Whether what is done to these parameters now goes into a CUDA graph."""
    for group in param_groups:
        for first in group["params"]:
            # A torch without CUDA has no answer, and no such parameter.
            return bool(first.is_cuda and torch.cuda.is_current_stream_capturing())
    return False


def refuse_captured_step(param_groups: list[dict[str, Any]]) -> None:
    """Raise where a step would be captured: its replays would not count, and no round would ever come.

    Raises:
        RuntimeError: while the current stream is capturing.
    """
    if is_capturing(param_groups):
        raise RuntimeError(
            "optimizer.step() cannot be captured in a CUDA graph: a replay would not count as a step, so no round "
            "would ever come. Capture the model's forward and backward alone, for example by "
            "torch.cuda.make_graphed_callables, and call optimizer.step() after each replay"
        )

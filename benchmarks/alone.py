"""One rank that averages with itself: all that a round does and sends, where there is no second GPU for a second rank.

One worker alone has nobody to average with, so the optimizer stays the wrapped one, and NCCL and the kernels of a round
would not run. Here it goes through its rounds. Its weight is 1 and the centre its own model: what the rounds change
beside rounding is a fault.
"""

from __future__ import annotations

from grawa_hvd.worker import Worker


def average_alone() -> None:
    """Let all optimizers of this process go through their rounds, whatever the number of workers."""
    Worker.active = property(lambda self: self._transport.is_member)  # type: ignore[method-assign,assignment]

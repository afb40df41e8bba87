"""Compression of a round: differences from the last centre travel in 16 bits an element, with error feedback."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Half of float16's largest number is left to rounding and to the residuals of earlier rounds.
LARGEST = 2.0**14


class Uncompressed:
    """Everything travels as it is. The two methods are those that `hvd.DistributedOptimizer` wants."""

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, Any]:
        """The tensor itself, and nothing to remember."""
        return tensor, None

    @staticmethod
    def decompress(tensor: Tensor, context: Any) -> Tensor:
        """The tensor itself."""
        return tensor


class Half:
    """16 bits an element. The two methods are those that `hvd.DistributedOptimizer` wants; a round has its own way."""

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, Any]:
        """The tensor as float16, and the dtype that it had."""
        return (tensor.to(torch.float16), tensor.dtype) if tensor.is_floating_point() else (tensor, tensor.dtype)

    @staticmethod
    def decompress(tensor: Tensor, context: Any) -> Tensor:
        """The tensor in the dtype that it had."""
        return tensor.to(context)


class BFloat16:
    """bfloat16, for a transport that can add such numbers. Horovod cannot: `Communicator` refuses this."""

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, Any]:
        """The tensor as bfloat16, and the dtype that it had."""
        return (tensor.to(torch.bfloat16), tensor.dtype) if tensor.is_floating_point() else (tensor, tensor.dtype)

    @staticmethod
    def decompress(tensor: Tensor, context: Any) -> Tensor:
        """The tensor in the dtype that it had."""
        return tensor.to(context)


class Compression:
    """What may be passed as `compression=`; Horovod's own `none` and `fp16` mean the same here.

    `fp16` halves the bytes of a round. What is rounded is each worker's weighted difference from the last
    centre, so the error is relative to how far workers moved and not to the size of the weights, and what a worker's
    own rounding took away is added in the next round (error feedback; Seide et al., Interspeech 2014). What Horovod
    rounds as it adds float16 numbers is not known to anybody and adds up over rounds. The first round, which has no
    centre to differ from, travels whole. The differences are scaled by a power of two that all ranks agree on, so that
    none overflows: they have the range of bfloat16, and three bits more.

    `bf16` is a ValueError over Horovod, which refuses bfloat16 numbers. They could travel as float32, which saves no
    bytes, or be gathered and added by each worker, which takes M/2 times the bytes and fails once a rank has joined.
    """

    none = Uncompressed
    fp16 = Half
    bf16 = BFloat16


class HalfDifferences:
    """The differences of one bucket on their way through float16.

    Args:
        differences: this worker's weighted differences from the centre, flat; their sum over the workers afterwards.
        residual: what rounding has taken away in earlier rounds, like `differences`; updated in place.
        reach: the largest ‖x − c‖ of a worker over all parameters: the same number on every rank.
    """

    def __init__(self, differences: Tensor, residual: Tensor, reach: float) -> None:
        self.differences = differences.add_(residual)
        self._inverse = 1.0 / scale_for(reach)
        self.wire = differences.mul(1.0 / self._inverse).to(torch.float16)
        torch.sub(differences, self.wire.to(differences.dtype).mul_(self._inverse), out=residual)

    def receive(self) -> None:
        """Turn the summed wire into `differences`."""
        self.differences.copy_(self.wire).mul_(self._inverse)


def scale_for(reach: float) -> float:
    """The power of two that takes `reach` just below `LARGEST`; 1 where there is nothing to go by.

    Since weights sum to 1 and no element is longer than its vector, sums of differences stay below it on all ranks.
    """
    if not 0 < reach < math.inf:
        return 1.0
    _, exponent = math.frexp(reach)
    # Within float32's range: its ends are no distances that training knows.
    return 2.0 ** max(-100, min(100, math.frexp(LARGEST)[1] - 1 - exponent))

"""How flat buffers travel over a transport: compressed as the user asked, and in a type that the backend adds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grawa_hvd.transport.base import Transport, Work

# Half of float16's largest number is left to rounding and to the residuals of earlier rounds.
LARGEST = 2.0**14


class _Cast:
    """A compressor of Horovod's kind: a type on the wire. A round's differences have a way of their own."""

    dtype: torch.dtype

    @classmethod
    def compress(cls, tensor: Tensor) -> tuple[Tensor, torch.dtype]:
        """The tensor in the type of the wire, and the type that it had."""
        return (tensor.to(cls.dtype) if tensor.is_floating_point() else tensor), tensor.dtype

    @classmethod
    def decompress(cls, tensor: Tensor, context: torch.dtype) -> Tensor:
        """The tensor in the type that it had."""
        return tensor.to(context)


def _is_cast(compression: Any) -> bool:
    return isinstance(compression, type) and issubclass(compression, _Cast)


class Uncompressed:
    """Everything travels as it is."""

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, Any]:
        """The tensor itself, and nothing to remember."""
        return tensor, None

    @staticmethod
    def decompress(tensor: Tensor, context: Any) -> Tensor:
        """The tensor itself."""
        return tensor


class Float16(_Cast):
    """float16 on the wire."""

    dtype = torch.float16


class BFloat16(_Cast):
    """bfloat16 on the wire, over a transport that can add such numbers."""

    dtype = torch.bfloat16


class _Float32(_Cast):
    """For buffers whose type the backend cannot add."""

    dtype = torch.float32


class Compression:
    """What may be passed as `compression=`; Horovod's own `none` and `fp16` mean the same here.

    `fp16` and `bf16` halve the bytes of a round. What is rounded is each worker's weighted difference from the last
    centre, so the error is relative to how far workers moved and not to the size of the weights, and what a worker's
    own rounding took away is added in the next round (error feedback; Seide et al., Interspeech 2014). What the backend
    rounds as it adds such numbers is not known to anybody and adds up over rounds. The first round, which has no
    centre to differ from, travels whole. The differences are scaled by a power of two that all ranks agree on, so that
    none overflows: as float16 they have the range of bfloat16, and three bits more.

    `bf16` is a ValueError over Horovod, which cannot add bfloat16 numbers.
    """

    none = Uncompressed
    fp16 = Float16
    bf16 = BFloat16


@dataclass
class Sum:
    """The sum of a buffer over the workers, on its way.

    Attributes:
        bytes: what this worker handed to the transport.
    """

    buffer: Tensor
    wire: Tensor
    work: Work
    compression: Any
    context: Any
    inverse_scale: float = 1.0

    @property
    def bytes(self) -> int:
        """What this worker handed to the transport."""
        return self.wire.numel() * self.wire.element_size()

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return self.work.done()

    def wait(self) -> None:
        """Let the buffer hold the sum."""
        self.work.wait()
        # Copying casts too, without another buffer.
        result = self.wire if _is_cast(self.compression) else self.compression.decompress(self.wire, self.context)
        if result.data_ptr() != self.buffer.data_ptr():
            self.buffer.copy_(result)
        if self.inverse_scale != 1.0:
            self.buffer.mul_(self.inverse_scale)


class Wire:
    """A transport, and what buffers are turned into while they travel over it.

    Args:
        transport: the workers.
        compression: one of `Compression`, or any compressor of Horovod's kind.

    Attributes:
        transport: the workers.
        small: the 16-bit type in which differences from the centre travel; None if they travel as other buffers do.

    Raises:
        ValueError: if `compression` is no compressor, or the transport cannot add what it yields.
    """

    def __init__(self, transport: Transport, compression: Any = Compression.none) -> None:
        if not (hasattr(compression, "compress") and hasattr(compression, "decompress")):
            raise ValueError(
                f"compression must have compress() and decompress(), as hvd.Compression.fp16, but is {compression!r}"
            )
        self.transport = transport
        # By identity: a compressor need not be hashable.
        ours = [own for theirs, own in transport.equivalents.items() if theirs is compression]
        self._compression = ours[0] if ours else compression
        self.small: torch.dtype | None = self._compression.dtype if _is_cast(self._compression) else None
        if self.small is not None and self.small not in transport.dtypes:
            raise ValueError(
                "compression must be Compression.none, Compression.fp16 or a compressor of Horovod's kind, but is "
                "Compression.bf16: Horovod cannot add bfloat16 numbers. Compression.fp16 takes as many bytes, and its "
                "differences, scaled together, have the range of bfloat16"
            )

    def again(self) -> Wire:
        """The same over the same workers, for another optimizer."""
        return Wire(self.transport.again(), self._compression)

    def describe(self) -> list[str]:
        """A line for each thing that ranks must agree on."""
        return [f"compression={self.compression}"]

    @property
    def compression(self) -> str:
        """The name of the compressor."""
        return str(getattr(self._compression, "__name__", type(self._compression).__name__))

    @property
    def is_plain(self) -> bool:
        """Whether everything travels as it is."""
        return self._compression is Uncompressed

    def sum_(self, buffer: Tensor, name: str, exact: bool = False) -> Sum:
        """Start the sum of a flat buffer over the workers, in place.

        Args:
            buffer: of floating point.
            name: see `Transport.sum_`.
            exact: leave a compressor of the user's out.
        """
        compression = Uncompressed if exact or self.small else self._compression
        if compression is Uncompressed and buffer.dtype not in self.transport.dtypes:
            compression = _Float32
        wire, context = compression.compress(buffer)
        return Sum(buffer, wire, self.transport.sum_(wire, name), compression, context)

    def sum_differences_(self, differences: Tensor, residual: Tensor, radius: float, name: str) -> Sum:
        """Start the sum of differences from the centre over the workers, in 16 bits and in place.

        Args:
            differences: this worker's weighted differences, flat.
            residual: what rounding has taken away in earlier rounds, like `differences`; updated in place.
            radius: the largest ‖x − c‖ of a worker over all parameters: the same number on every rank.
            name: see `Transport.sum_`.
        """
        assert self.small is not None
        inverse = 1.0 / scale_for(radius)
        differences.add_(residual)
        wire = differences.mul(1.0 / inverse).to(self.small)
        torch.sub(differences, wire.to(differences.dtype).mul_(inverse), out=residual)
        return Sum(differences, wire, self.transport.sum_(wire, name), _Cast, differences.dtype, inverse)


def scale_for(radius: float) -> float:
    """The power of two that takes `radius` just below `LARGEST`; 1 where there is nothing to go by.

    Since weights sum to 1 and no element is longer than its vector, sums of differences stay below it on all ranks.
    """
    if not 0 < radius < math.inf:
        return 1.0
    _, exponent = math.frexp(radius)
    # Within float32's range: its ends are no distances that training knows.
    return 2.0 ** max(-100, min(100, math.frexp(LARGEST)[1] - 1 - exponent))

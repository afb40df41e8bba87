"""The devices that this machine has, for tests that must hold on each."""

import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# With where AdamW's counts of steps are: on the CPU, unless the optimizer is capturable.
PLACES = [("cpu", "cpu"), *((device, place) for device in DEVICES[1:] for place in ("cpu", device))]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Around the block (1024) and the chunk (16384) of the kernels, empty, single and odd.
SIZES = [0, 1, 2, 7, 31, 1023, 1025, 16384, 16385, 70001]


def name(value: object) -> str:
    return str(value).removeprefix("torch.")


def values(size: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> torch.Tensor:
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed * 1000003 + size)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).to(device)


def wire(tensor: torch.Tensor) -> torch.Tensor:
    """The elements in the order in which they must travel: memory order where it is one, else row-major."""
    order = sorted(range(tensor.dim()), key=lambda dim: (-tensor.stride(dim), dim))
    permuted = tensor.permute(order)
    return (permuted if permuted.is_contiguous() else tensor).reshape(-1)

"""Parameter shapes of known networks, in the order of their parameters: all that the kernels see of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

Shape = tuple[int, ...]


def resnet20() -> list[Shape]:
    """ResNet-20 for CIFAR-10 with projection shortcuts (He et al. 2016, section 4.2): 65 tensors."""
    shapes = [*_conv(3, 16, 3), *_norm(16)]
    for width, out in ((16, 16), (16, 32), (32, 64)):
        for block in range(3):
            first = width if block == 0 else out
            shapes += [*_conv(first, out, 3), *_norm(out), *_conv(out, out, 3), *_norm(out)]
            if first != out:
                shapes += [*_conv(first, out, 1), *_norm(out)]
    return [*shapes, *_linear(64, 10)]


def vgg16() -> list[Shape]:
    """VGG-16 for CIFAR-10: 13 convolutions with bias and batch normalisation, one linear layer."""
    widths = [3, 64, 64, 128, 128, *[256] * 3, *[512] * 6]
    shapes = [shape for a, b in pairwise(widths) for shape in (*_conv(a, b, 3), (b,), *_norm(b))]
    return [*shapes, *_linear(512, 10)]


def densenet121() -> list[Shape]:
    """DenseNet-121 for ImageNet (Huang et al. 2017): growth 32, bottlenecks of 4 × 32."""
    width = 64
    shapes = [*_conv(3, width, 7), *_norm(width)]
    for layers in (6, 12, 24, 16):
        for _ in range(layers):
            shapes += [*_norm(width), *_conv(width, 128, 1), *_norm(128), *_conv(128, 32, 3)]
            width += 32
        shapes += _norm(width)  # of the transition, or the last of the network
        if layers != 16:
            shapes += _conv(width, width // 2, 1)
            width //= 2
    return [*shapes, *_linear(width, 1000)]


def wrn28_10() -> list[Shape]:
    """WRN-28-10 for CIFAR-10 (Zagoruyko and Komodakis 2016): pre-activation blocks, 1 × 1 shortcuts."""
    shapes = _conv(3, 16, 3)
    for width, out in ((16, 160), (160, 320), (320, 640)):
        for block in range(4):
            first = width if block == 0 else out
            shapes += [*_norm(first), *_conv(first, out, 3), *_norm(out), *_conv(out, out, 3)]
            shapes += _conv(first, out, 1) if block == 0 else []
    return [*shapes, *_norm(640), *_linear(640, 10)]


def resnet50() -> list[Shape]:
    """ResNet-50 for ImageNet (He et al. 2016): 161 tensors."""
    width = 64
    shapes = [*_conv(3, width, 7), *_norm(width)]
    for inner, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        out = 4 * inner
        for block in range(blocks):
            for a, b, kernel in ((width, inner, 1), (inner, inner, 3), (inner, out, 1)):
                shapes += [*_conv(a, b, kernel), *_norm(b)]
            shapes += [*_conv(width, out, 1), *_norm(out)] if block == 0 else []
            width = out
    return [*shapes, *_linear(width, 1000)]


def gpt2() -> list[Shape]:
    """GPT-2 124M (Radford et al. 2019): 12 blocks of width 768, the output tied to the token embedding."""
    width = 768
    block = _norm(width)
    for a, b in ((width, 3 * width), (width, width)):
        block += _linear(a, b)
    block += _norm(width)
    for a, b in ((width, 4 * width), (4 * width, width)):
        block += _linear(a, b)
    return [(50257, width), (1024, width), *(block * 12), *_norm(width)]


def tiny500() -> list[Shape]:
    """500 vectors of 1 to 100 elements: nothing but overhead."""
    return [(1 + index % 100,) for index in range(500)]


def dense10() -> list[Shape]:
    """Ten square layers of 9.6 million elements together: 38 MB in float32, without a small one."""
    return [(980, 980)] * 10


def huge() -> list[Shape]:
    """One vector of 100 MB in float32: nothing but bandwidth."""
    return [(25_000_000,)]


MODELS: dict[str, Callable[[], list[Shape]]] = {
    model.__name__: model for model in (tiny500, resnet20, densenet121, dense10, vgg16, huge, resnet50, wrn28_10, gpt2)
}
"""Shapes of every model by name, from the smallest to the largest."""


def numel(shapes: Iterable[Shape]) -> int:
    """Number of elements of all shapes together."""
    total = 0
    for shape in shapes:
        elements = 1
        for size in shape:
            elements *= size
        total += elements
    return total


def _conv(inputs: int, outputs: int, kernel: int) -> list[Shape]:
    return [(outputs, inputs, kernel, kernel)]


def _norm(width: int) -> list[Shape]:
    return [(width,), (width,)]


def _linear(inputs: int, outputs: int) -> list[Shape]:
    return [(outputs, inputs), (outputs,)]

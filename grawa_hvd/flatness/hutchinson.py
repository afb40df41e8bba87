"""Norm and trace of a symmetric matrix by Hutchinson's estimate, outside of the directions that are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grawa_hvd.flatness.lanczos import Product, Projection, random_signs
from grawa_hvd.flatness.result import Estimate


def norm_and_trace(product: Product, known: Projection, vectors: int, generator: torch.Generator
                   ) -> tuple[Estimate, Estimate]:  # fmt: skip
    """‖H‖_F and tr H: exact in the directions of Lanczos, Hutchinson's estimate in the others.

    This is Hutch++ (Meyer et al. 2021) with the directions of Lanczos in place of random ones.

    Args:
        product: v → H v, both [P].
        known: H in the directions of Lanczos.
        vectors: random vectors, at least 2; none are drawn where Lanczos has all directions.
        generator: draws them.
    """
    squares, traces = torch.zeros(2, vectors, dtype=torch.float64)
    directions, size = known.basis.shape
    for number in range(vectors if directions < size else 0):
        vector = known.outside(random_signs(known.basis[0], generator))
        image = product(vector)
        squares[number], traces[number] = float(image.dot(image)), float(image.dot(vector))
    norm = math.sqrt(known.squared_norm() + float(squares.mean()))
    # The error of a root, to first order.
    norm_error = _standard_error(squares) / (2 * norm) if norm else 0.0
    trace = float(known.matrix.trace() + traces.mean())
    return Estimate(norm, norm_error), Estimate(trace, _standard_error(traces))


def _standard_error(samples: Tensor) -> float:
    return float(samples.std()) / math.sqrt(len(samples))

"""The Lanczos iteration: a large symmetric matrix, seen from the directions in which it does most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    """A symmetric H of P rows in the directions Q: H Qᵀ = Qᵀ T + β q eᵀ, q orthogonal to Q, e = (0, …, 0, 1).

    Attributes:
        basis: Q, orthonormal rows, [iterations, P].
        matrix: T = Q H Qᵀ, tridiagonal, float64, [iterations, iterations], in the host's memory.
        rest: β, by how much H leads out of Q; 0 where Q is all that H can reach.
    """

    basis: Tensor
    matrix: Tensor
    rest: float

    def squared_norm(self) -> float:
        """‖H Qᵀ‖²: what H's squared Frobenius norm has in these directions."""
        return float(self.matrix.square().sum()) + self.rest**2

    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pseudo-eigenvalues in ascending order, their weights, how far an eigenvalue of H can be; each [iterations].

        Weights are the squared first components of T's eigenvectors, residuals are β times the sizes of the last ones
        (Golub and Van Loan, Matrix Computations, section 10.1).
        """
        values, vectors = torch.linalg.eigh(self.matrix)
        return values, vectors[0].square(), self.rest * vectors[-1].abs()

    def outside(self, vector: Tensor) -> Tensor:
        """The part of a vector, [P], that is orthogonal to Q."""
        return _without(vector, self.basis)


def lanczos(product: Product, start: Tensor, iterations: int, generator: torch.Generator) -> Projection:
    """As many steps of the Lanczos iteration, each new direction made orthogonal to all before.

    Without that, an eigenvalue that has been found would be found again and again, by rounding (Simon 1984; the paper
    cites it, section 6.2).

    Args:
        product: v → H v, both [P].
        start: the first direction, not zero, [P].
        iterations: from 1 to P. So many vectors are kept.
        generator: draws a new direction, on the host, where H leads to none.
    """
    basis = start.new_zeros(iterations, start.numel())
    matrix = torch.zeros(iterations, iterations, dtype=torch.float64)
    direction = start / start.norm()
    for step in range(iterations):
        basis[step] = direction
        image = product(direction)
        matrix[step, step] = float(image.dot(direction))
        direction = _without(image, basis[: step + 1])
        rest = float(direction.norm())
        # What rounding leaves of an image within the basis has no direction of its own.
        if rest <= 10 * torch.finfo(start.dtype).eps * float(image.norm()):
            rest = 0.0
            if step + 1 < iterations:
                direction = _without(random_signs(start, generator), basis[: step + 1])
        if step + 1 < iterations:
            matrix[step, step + 1] = matrix[step + 1, step] = rest
            # A second time: the first leaves rounding behind, which counts where little else is left.
            direction = _without(direction / direction.norm(), basis[: step + 1])
            direction = direction / direction.norm()
    return Projection(basis, matrix, rest)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """A vector of −1 and 1, of the shape, type and device of another, drawn on the host: the same on every device."""
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)


def _without(vector: Tensor, basis: Tensor) -> Tensor:
    """A vector less its part in the span of orthonormal rows."""
    return vector - basis.T @ (basis @ vector)

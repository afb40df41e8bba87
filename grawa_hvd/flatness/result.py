"""What a measurement of flatness says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A number, and how far off it may be: 0 where it is exact but for rounding.

    Attributes:
        value: the estimate.
        error: its standard error, unless the attribute that holds it says otherwise.
    """

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g}"


@dataclass(frozen=True)
class Flatness:
    """The Hessian H and the gradient of the mean loss over a loader, at a model's parameters, P in number.

    Attributes:
        eigenvalues: pseudo-eigenvalues of H, ascending, float64, [iterations]: the eigenvalues of its projection to as
            many directions, those of Lanczos.
        weights: the share of H's spectrum that each of them stands for, seen from one random direction; [iterations],
            sum 1 (stochastic Lanczos quadrature; Ubaru et al. 2017).
        frobenius_norm: ‖H‖_F: what H has in the directions of Lanczos, which is exact, and an estimate of the rest.
        trace: of H, likewise.
        largest_eigenvalue: of the pseudo-eigenvalues; H's own is as large or larger. The error is no standard error: an
            eigenvalue of H lies within it, but for rounding.
        gradient_norm: ‖gradient‖; exact.
        loss: the mean loss; exact.
        parameters: P, those that are trained.
    """

    eigenvalues: Tensor
    weights: Tensor
    frobenius_norm: Estimate
    trace: Estimate
    largest_eigenvalue: Estimate
    gradient_norm: float
    loss: float
    parameters: int

    @property
    def lanczos_norm(self) -> float:
        """The norm of the pseudo-eigenvalues, never above ‖H‖_F.

        So measure Dimlioglu and Choromanska (2024, section 6.2), with 100 of them: "we approximate the Frobenius norm
        of the Hessian matrix … by using the extracted 100 pseudo-eigenvalues".
        """
        return float(self.eigenvalues.norm())

    def __str__(self) -> str:
        rows = {
            "parameters": f"{self.parameters:,}",
            "loss": f"{self.loss:.6g}",
            "gradient norm": f"{self.gradient_norm:.6g}",
            "Frobenius norm": str(self.frobenius_norm),
            f"norm of {len(self.eigenvalues)} pseudo-eigenvalues": f"{self.lanczos_norm:.6g}",
            "trace": str(self.trace),
            "largest eigenvalue": str(self.largest_eigenvalue),
            "least pseudo-eigenvalue": f"{float(self.eigenvalues[0]):.6g}",
        }
        return "\n".join(f"{name + ':':36}{text}" for name, text in rows.items())

"""How flat the valley is that a model has come to: the Hessian's spectrum, norm and trace, and the gradient's norm."""

from grawa_hvd.flatness.measure import LOSSES, flatness
from grawa_hvd.flatness.result import Estimate, Flatness

__all__ = ["LOSSES", "Estimate", "Flatness", "flatness"]

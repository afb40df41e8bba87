"""Periodic model averaging by inverse gradient norms (GRAWA), as a drop-in for Horovod's DistributedOptimizer."""

from grawa_hvd import averaging, ops, scores
from grawa_hvd.averaging import GRAWA, LGRAWA, MGRAWA, Uniform
from grawa_hvd.compression import Compression
from grawa_hvd.errors import AllWorkersDivergedError, RanksOutOfStepError, ScoresError
from grawa_hvd.optimizer import DistributedGrawaOptimizer
from grawa_hvd.report import RoundReport

__version__ = "0.1.0"

__all__ = [
    "GRAWA",
    "LGRAWA",
    "MGRAWA",
    "AllWorkersDivergedError",
    "Compression",
    "DistributedGrawaOptimizer",
    "RanksOutOfStepError",
    "RoundReport",
    "ScoresError",
    "Uniform",
    "averaging",
    "ops",
    "scores",
]

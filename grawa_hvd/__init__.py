"""Periodic model averaging by inverse gradient norms (GRAWA), as a drop-in for Horovod's DistributedOptimizer."""

from grawa_hvd import averaging, ops, scores, tensorboard
from grawa_hvd.averaging import GRAWA, LGRAWA, MGRAWA, Averaging, Observed, Uniform
from grawa_hvd.compression import Compression
from grawa_hvd.errors import AllWorkersDivergedError, RanksOutOfStepError, ScoresError
from grawa_hvd.optimizer import DistributedGrawaOptimizer
from grawa_hvd.protocol import GrawaOptimizer, SupportsAveraging
from grawa_hvd.report import RoundReport
from grawa_hvd.scores import FreshScores, LocalScores

__version__ = "0.1.0"

__all__ = [
    "GRAWA",
    "LGRAWA",
    "MGRAWA",
    "AllWorkersDivergedError",
    "Averaging",
    "Compression",
    "DistributedGrawaOptimizer",
    "FreshScores",
    "GrawaOptimizer",
    "LocalScores",
    "Observed",
    "RanksOutOfStepError",
    "RoundReport",
    "ScoresError",
    "SupportsAveraging",
    "Uniform",
    "averaging",
    "ops",
    "scores",
    "tensorboard",
]

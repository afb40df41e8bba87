"""Periodic model averaging by inverse gradient norms (GRAWA), as a drop-in for Horovod's DistributedOptimizer."""

import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from grawa_hvd import averaging, tensorboard
from grawa_hvd.averaging import BMUF, GRAWA, LGRAWA, MGRAWA, Averaging, Column, DiLoCo, Observed, SlowMo, Uniform
from grawa_hvd.errors import AllWorkersDivergedError, RanksOutOfStepError, ScoresError
from grawa_hvd.protocol import GrawaOptimizer, SupportsAveraging
from grawa_hvd.report import RoundReport
from grawa_hvd.rounds.qsr import QSR
from grawa_hvd.transport.wire import Compression

if TYPE_CHECKING:
    from grawa_hvd.optimizer import DistributedGrawaOptimizer
    from grawa_hvd.simulation import simulate

with suppress(ImportError):  # of kernels that were built for another torch: `python -m grawa_hvd` says so
    from grawa_hvd import ops, scores
    from grawa_hvd.scores import FreshScores, HeldOutScores, LocalScores

__version__ = "0.1.0"

__all__ = [
    "BMUF",
    "GRAWA",
    "LGRAWA",
    "MGRAWA",
    "QSR",
    "AllWorkersDivergedError",
    "Averaging",
    "Column",
    "Compression",
    "DiLoCo",
    "DistributedGrawaOptimizer",
    "FreshScores",
    "GrawaOptimizer",
    "HeldOutScores",
    "LocalScores",
    "Observed",
    "RanksOutOfStepError",
    "RoundReport",
    "ScoresError",
    "SlowMo",
    "SupportsAveraging",
    "Uniform",
    "averaging",
    "ops",
    "scores",
    "simulate",
    "tensorboard",
]

# Loaded when they are asked for: what needs the kernels raises here where they cannot be loaded, and not before, for
# `python -m grawa_hvd` has advice then.
_MODULE_OF = {
    "DistributedGrawaOptimizer": "optimizer",
    "FreshScores": "scores",
    "HeldOutScores": "scores",
    "LocalScores": "scores",
    "ops": "ops",
    "scores": "scores",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    return module if name == _MODULE_OF[name] else getattr(module, name)

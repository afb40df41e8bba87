"""Averaging policies: who counts how much in a round."""

from typing import Any

from grawa_hvd.averaging.decentralized import Decentralized
from grawa_hvd.averaging.dppf import DPPF
from grawa_hvd.averaging.easgd import EASGD
from grawa_hvd.averaging.edit import EDiT
from grawa_hvd.averaging.lsgd import LSGD
from grawa_hvd.averaging.mediancap import MedianCap
from grawa_hvd.averaging.norms import GRAWA, LGRAWA, MGRAWA, NormAveraging
from grawa_hvd.averaging.outer import BMUF, DiLoCo, SlowMo
from grawa_hvd.averaging.policy import Averaging, Column, Mix, Mixing, Observed, Recipe, Scored
from grawa_hvd.averaging.registry import POLICIES, policy
from grawa_hvd.averaging.uniform import Uniform
from grawa_hvd.averaging.weighted import Weighted
from grawa_hvd.averaging.weights import inverse_norm_weights, inverse_weights, raise_to_floor

__all__ = [
    "BMUF",
    "DPPF",
    "EASGD",
    "GRAWA",
    "LGRAWA",
    "LSGD",
    "MGRAWA",
    "POLICIES",
    "Averaging",
    "Column",
    "Decentralized",
    "DiLoCo",
    "EDiT",
    "MedianCap",
    "Mix",
    "Mixing",
    "NormAveraging",
    "Observed",
    "Recipe",
    "Scored",
    "SlowMo",
    "Uniform",
    "Weighted",
    "inverse_norm_weights",
    "inverse_weights",
    "policy",
    "raise_to_floor",
]


def __getattr__(name: str) -> Any:
    """A policy of a file in this folder that is not imported above."""
    for found in POLICIES.values():
        if found.__name__ == name:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

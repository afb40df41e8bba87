"""M workers in one process, their parameters stacked: what averaging does, without a launcher."""

from grawa_hvd.simulation.data import batches, split
from grawa_hvd.simulation.result import Simulation
from grawa_hvd.simulation.simulator import simulate

__all__ = ["Simulation", "batches", "simulate", "split"]

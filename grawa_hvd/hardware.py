"""The constants of the cost model: those that were measured, and those that are assumed of GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from grawa_hvd.cost_model import Cluster, Constants, tree

# Of processors, over Horovod's Gloo: `make cost-model` fits them to benchmarks/results/cluster.json.
FITTED = Constants(latency=4.86e-4, software=7.95e-10, link=1.02, round=5.15e-10, half=6.5e-9, local=2.52e-10)
# How far the formula is from what they were fitted to: median and largest of 43 cells (docs/cost_model.md).
ERRORS = 0.09, 0.64


@dataclass(frozen=True)
class Gpus:
    """Hosts of GPUs, for predictions: assumptions, none of them measured here.

    Attributes:
        local_bandwidth: between the GPUs of a host, bits a second.
        latency: of a hop.
        memory: bytes a second that packing and blending read and write; they pass the model 6 times.
    """

    local_bandwidth: float = 1.6e12
    latency: float = 10e-6
    memory: float = 2e12

    def constants(self, link: float = FITTED.link) -> Constants:
        """A GPU's copies are not the processor's: what is taken over from the fit is the link's efficiency."""
        return Constants(self.latency, 0.0, link, 6 / self.memory, 4 / self.memory)

    def cluster(self, workers: int, per_host: int, gigabits: float) -> Cluster:
        """Hosts of GPUs; collectives of so many ranks are trees."""
        return Cluster(workers, per_host, gigabits * 1e9, self.local_bandwidth, hops=tree)

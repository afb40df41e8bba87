"""4 workers, each on a host of its own, average with neighbors: a host's wire carries the models of its degree."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine import call, succeed
from problem import CLASSES, FEATURES

HERE = Path(__file__).resolve().parent
HOSTS, STEPS, PERIOD = 4, 24, 4


@pytest.fixture(scope="module")
def hosts(namespaces: None) -> Iterator[None]:
    try:
        succeed("up", "--hosts", str(HOSTS), "--rate", "1gbit")
        yield
    finally:
        call("down")


@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize(("averaging", "degree"), [("decentralized", 1), ({"graph": "ring"}, 2)], ids=["peer", "ring"])
def test_a_host_sends_and_receives_the_models_of_its_degree(averaging: Any, degree: int, tmp_path: Path) -> None:
    """An allreduce would send 1.5 models, and an allgather 3.

    To the models come headers and acknowledgements, 9% at most, and what Horovod's ranks tell each other: as in
    test_cluster.py.
    """
    options = json.dumps({"averaging": averaging, "period": PERIOD})
    command = ["env", "HOROVOD_CYCLE_TIME=10", "HOROVOD_GLOO_TIMEOUT_SECONDS=120"]
    command += [str(Path(sys.executable).parent / "horovodrun"), "--gloo", "--disable-cache", "-np", str(HOSTS)]
    command += ["-H", ",".join(f"host{number}:1" for number in range(1, HOSTS + 1)), "--network-interfaces", "eth0"]
    command += [sys.executable, str(HERE / "train.py"), "--steps", str(STEPS), "--options", options]
    succeed("exec", "--timeout", "300", "host1", "--", *command, "--output", str(tmp_path), seconds=330)
    models = (STEPS // PERIOD - 1) * degree * 4 * (FEATURES + 1) * CLASSES  # watched from the end of the first round on
    for rank in range(HOSTS):
        with np.load(tmp_path / f"rank{rank}.npz") as file:
            found = dict(file)
        assert models <= found["handed_over"] <= 1.01 * models
        for way in ("sent", "received"):
            assert models <= found[way] <= 1.19 * models + 1.25 * found[f"idle_{way}"] * found["seconds"]

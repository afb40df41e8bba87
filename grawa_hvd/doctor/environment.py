"""Whether environment variables fit the ranks of this host, and each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grawa_hvd.doctor.finding import FAIL, PASS, WARN, Finding

GLOO_TIMEOUT = 30  # seconds; Horovod 0.28.1's own
LOCAL_SIZES = ("HOROVOD_LOCAL_SIZE", "LOCAL_WORLD_SIZE")  # of horovodrun, of torchrun


def ranks_of_host(environment: Mapping[str, str]) -> int:
    """As horovodrun or torchrun say; 1 outside of them."""
    return next((int(environment[name]) for name in LOCAL_SIZES if environment.get(name, "").isdecimal()), 1)


def check(environment: Mapping[str, str], ranks: int, threads: int, processors: int, devices: int) -> list[Finding]:
    """What may make a run slow, or end it.

    Args:
        ranks: of this host.
        threads: of each rank, torch's.
        processors: that these ranks share.
        devices: CUDA devices that torch sees.
    """
    findings = [_threads(ranks, threads, processors), _gloo_timeout(environment.get("HOROVOD_GLOO_TIMEOUT_SECONDS"))]
    if 0 < devices < ranks:
        text = f"{ranks} ranks share {devices} devices: NCCL takes one rank on each. Start as many ranks as devices."
        findings.append(Finding(WARN, "devices", text))
    return [*findings, *_master(environment)]


def _threads(ranks: int, threads: int, processors: int) -> Finding:
    about, fitting = "OMP_NUM_THREADS", max(1, processors // ranks)
    found = f"ranks of this host: {ranks}, threads of each: {threads}, processors: {processors}"
    if ranks > 1 and threads > fitting:
        return Finding(WARN, about, f"{found}. Threads would wait for one another: set OMP_NUM_THREADS={fitting}.")
    return Finding(PASS, about, found if ranks > 1 else f"{found}; for another number of ranks, --ranks-per-host N")


def _gloo_timeout(value: str | None) -> Finding:
    about = "HOROVOD_GLOO_TIMEOUT_SECONDS"
    if value is None:
        return Finding(PASS, about, f"not set: {GLOO_TIMEOUT} s. Set 300 where ranks start long after one another.")
    if not value.isdecimal() or int(value) == 0:
        return Finding(FAIL, about, f"must be a whole number of seconds, at least 1, but is {value!r}.")
    if int(value) < GLOO_TIMEOUT:
        text = f"{value} s: a rank that is later than that ends the job. Leave it out ({GLOO_TIMEOUT} s), or set 300."
        return Finding(WARN, about, text)
    return Finding(PASS, about, f"{value} s")


def _master(environment: Mapping[str, str]) -> Iterator[Finding]:
    """torchrun's meeting point."""
    address = environment.get("MASTER_ADDR")
    if address is None:
        return
    world, local = (environment.get(name, "") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    several_hosts = world.isdecimal() and local.isdecimal() and int(world) > int(local)
    if several_hosts and (address == "localhost" or address.startswith("127.") or address == "::1"):
        text = f"{address} is each host itself, but {world} ranks are on several hosts. Give the first host's address."
        yield Finding(FAIL, "MASTER_ADDR", text)
    elif "MASTER_PORT" not in environment:
        yield Finding(FAIL, "MASTER_ADDR", "MASTER_PORT is not set. Set it to a free port of that host.")
    else:
        yield Finding(PASS, "MASTER_ADDR", f"{address}, port {environment['MASTER_PORT']}")

"""Namespaces, bridge and links: every host has one interface, eth0, on one switch, and a rate in each direction."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .processes import NAMESPACES
from .state import SWITCH, State
from .system import ClusterError, run

INTERFACE = "eth0"
BRIDGE = "bridge"
UNLIMITED = "none"
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
# A packet that waits longer than this at a full link is dropped, as by a switch with small buffers.
QUEUE = "50ms"


def parse_rate(text: str) -> str:
    """Check a rate such as 1gbit, 2.5gbit, 100mbit, 500kbit (bits a second, powers of ten), or none.

    Raises:
        ClusterError: if it is not one.
    """
    if text != UNLIMITED and _bits(text) < 1e4:
        raise ClusterError(f"rate is {text!r}; it must be `none`, or 10kbit or more, as 100mbit or 2.5gbit")
    return text


def _bits(rate: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", rate)
    return float(match[1]) * _UNITS[match[2]] if match else 0.0


def existing_namespaces() -> set[str]:
    return {path.name for path in NAMESPACES.iterdir()} if NAMESPACES.exists() else set()


def make_switch() -> None:
    run("ip", "netns", "add", SWITCH)
    run("ip", "-n", SWITCH, "link", "add", BRIDGE, "type", "bridge")
    run("ip", "-n", SWITCH, "link", "set", BRIDGE, "addrgenmode", "none", "up")


def make_host(state: State, host: str) -> None:
    """A namespace with loopback and eth0; the other end of eth0 is a port of the switch, named as the host."""
    run("ip", "netns", "add", host)
    run("ip", "-n", host, "link", "set", "lo", "up")
    run("ip", "-n", host, "link", "add", INTERFACE, "type", "veth", "peer", "name", host, "netns", SWITCH)
    # IPv6 would make itself link-local addresses, and its chatter would be in the counters.
    run("ip", "-n", host, "link", "set", INTERFACE, "addrgenmode", "none")
    run("ip", "-n", SWITCH, "link", "set", host, "addrgenmode", "none", "master", BRIDGE, "up")
    run("ip", "-n", host, "address", "add", f"{state.address(host)}/24", "dev", INTERFACE)
    run("ip", "-n", host, "link", "set", INTERFACE, "up")


def remove_namespace(name: str) -> None:
    """With a namespace go its interfaces, and with each the other end of its link."""
    if name in existing_namespaces():
        run("ip", "netns", "del", name)


def shape(host: str, rate: str) -> None:
    """Limit what a host sends and what it receives, each to `rate`.

    Raises:
        ClusterError: if the kernel has no token bucket filter.
    """
    for namespace, device in ((host, INTERFACE), (SWITCH, host)):
        if rate != UNLIMITED:
            _limit(namespace, device, rate)
        elif any(discipline["kind"] == "tbf" for discipline in _disciplines(namespace, device)):
            run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")


def _limit(namespace: str, device: str, rate: str) -> None:
    # What 4 ms carry, the longest tick of a usual kernel, and never less than the 64 KiB that TCP hands down in one.
    burst = max(1 << 17, int(_bits(rate) / 8 * 0.004))
    try:
        run(
            *("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root"),
            *("tbf", "rate", rate, "burst", str(burst), "latency", QUEUE),
        )
    except ClusterError as error:
        raise ClusterError(f"cannot limit rates here; `--rate none` makes a cluster without ({error})") from None


def _disciplines(namespace: str, device: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("tc", "-n", namespace, "-j", "qdisc", "show", "dev", device))
    return found


def counters(host: str) -> dict[str, int]:
    """What a host's eth0 has received and sent since it was made, as the interface counts it."""
    [link] = json.loads(run("ip", "-n", host, "-s", "-j", "link", "show", INTERFACE))
    statistics = link["stats64"]
    return {
        f"{way}_{what}": int(statistics[way][what]) for way in ("rx", "tx") for what in ("bytes", "packets", "dropped")
    }


def hosts_file(host: str) -> Path:
    """`ip netns exec` lays it over /etc/hosts."""
    return Path("/etc/netns") / host / "hosts"

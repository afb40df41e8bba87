"""Which network interface would be used, and whether there is one by that name."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from grawa_hvd.doctor.finding import FAIL, PASS, WARN, Finding

VARIABLES = {
    "HOROVOD_GLOO_IFACE": "Horovod's Gloo",
    "GLOO_SOCKET_IFNAME": "torch's Gloo",
    "NCCL_SOCKET_IFNAME": "NCCL",
}
SIOCGIFADDR = 0x8915  # Linux: the address of an interface
SOMEWHERE = ("192.0.2.1", 9)  # an address for documents (RFC 5737); nothing is sent to it


@dataclass(frozen=True)
class Network:
    """What this host has.

    Attributes:
        interfaces: name → IPv4 address, of those that have one.
        route: the address from which hosts outside its networks would be reached; None without a default route.
        named: the address that the host's own name stands for; None if for none.
    """

    interfaces: Mapping[str, str]
    route: str | None
    named: str | None


def inspect() -> Network:
    """Ask the system."""
    interfaces = {name: address for _, name in socket.if_nameindex() if (address := _address(name))}
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(SOMEWHERE)
            route = probe.getsockname()[0]
    except OSError:
        route = None
    try:
        named = socket.gethostbyname(socket.gethostname())
    except OSError:
        named = None
    return Network(interfaces, route, named)


def _address(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def check(network: Network, environment: Mapping[str, str]) -> list[Finding]:
    """The interfaces that variables name; where none does, what is used instead."""
    given = {name: environment[name] for name in VARIABLES if environment.get(name)}
    findings = [_named(name, value, network) for name, value in given.items()]
    gloo = {name: value for name, value in given.items() if name != "NCCL_SOCKET_IFNAME"}  # which writes otherwise
    if len(set(gloo.values())) > 1:
        text = ", ".join(f"{name}={value}" for name, value in gloo.items())
        findings.append(Finding(WARN, "interfaces", f"they differ: {text}. Name the same one in both."))
    return findings or [_unnamed(network)]


def _named(variable: str, value: str, network: Network) -> Finding:
    used, about = chosen(variable, value, list(network.interfaces)), f"{variable}={value}"
    if not used:
        known = ", ".join(network.interfaces) or "none"
        return Finding(FAIL, about, f"no interface with an address is called so: there are {known}.")
    shown = ", ".join(f"{name} ({network.interfaces[name]})" for name in used)
    return Finding(PASS, about, f"{VARIABLES[variable]} uses {shown}")


def chosen(variable: str, value: str, interfaces: list[str]) -> list[str]:
    """The interfaces that a variable stands for: Horovod reads one name, torch a list.

    NCCL reads a list of beginnings of names; after "=" of whole names, after "^" of those to leave out.
    """
    if variable != "NCCL_SOCKET_IFNAME":
        names = [value] if variable == "HOROVOD_GLOO_IFACE" else value.split(",")
        return names if set(names) <= set(interfaces) else []
    is_whole, is_left_out = value.lstrip("^").startswith("="), value.startswith("^")
    names = value.lstrip("^=").split(",")
    fits = {one for one in interfaces for name in names if one == name or (not is_whole and one.startswith(name))}
    return [one for one in interfaces if (one in fits) != is_left_out]


def _unnamed(network: Network) -> Finding:
    about = "interfaces"
    outward = {name: address for name, address in network.interfaces.items() if not address.startswith("127.")}
    if not outward:
        return Finding(WARN, about, "there is none to other hosts: this host can only train by itself.")
    variables = "HOROVOD_GLOO_IFACE and GLOO_SOCKET_IFNAME, or horovodrun --network-interfaces"
    if len(outward) > 1:
        shown = ", ".join(f"{name} ({address})" for name, address in outward.items())
        route = "there is no default route" if network.route is None else f"the route leads out from {network.route}"
        return Finding(WARN, about, f"{shown}; {route}. Name the one to use with {variables}.")
    ((name, address),) = outward.items()
    if network.named is None or network.named.startswith("127."):
        found = network.named or "no address"
        text = f"this host's name stands for {found}, where torch's Gloo would listen and no other host can reach it."
        return Finding(WARN, about, f"{text} Name the interface, {name}, with {variables}.")
    return Finding(PASS, about, f"{name}, address {address}")

"""A cluster comes up whole or not at all, and goes without a trace."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from . import network, processes, ssh
from .network import hosts_file, parse_rate, shape
from .state import MOST_HOSTS, SWITCH, State, forget, load, load_ready, locked
from .system import ClusterError, install_missing, require_namespaces, require_root, uninterrupted


def up(hosts: int, rate: str) -> State:
    """Make a cluster.

    Args:
        hosts: how many, 1 to 64; they are called host1, host2, …
        rate: of each host's link, each way, as `network.parse_rate` takes it.

    Raises:
        ClusterError: if one is up, if something else has the names, or if this machine does not allow it. Nothing of
            it is left then.
    """
    if not 1 <= hosts <= MOST_HOSTS:
        raise ClusterError(f"--hosts is {hosts}; it must be 1 to {MOST_HOSTS}")
    rate = parse_rate(rate)
    require_root()
    require_namespaces()
    install_missing()
    with locked():
        _make_room()
        names = [f"host{number}" for number in range(1, hosts + 1)]
        _refuse_to_take(names)
        state = State(names, dict.fromkeys(names, rate))
        try:
            _build(state)
        except BaseException:
            _remove(state)
            raise
    return state


def _make_room() -> None:
    old = load()
    if old is None:
        return
    if old.ready and all(ssh.is_running(old, host) for host in old.hosts):
        raise ClusterError(f"a cluster of {len(old.hosts)} hosts is up; `scripts/cluster down` takes it down")
    print("Removing what an interrupted run has left.", flush=True)
    _remove(old)


def _refuse_to_take(names: list[str]) -> None:
    taken = sorted(network.existing_namespaces() & {SWITCH, *names})
    if taken:
        raise ClusterError(f"there is a network namespace {taken[0]} already, and it is not this command's")
    for name in names:
        folder = hosts_file(name).parent
        if folder.exists() and not _is_ours(folder):
            raise ClusterError(f"there is a {folder} already, and it is not this command's")
        # Left by a machine that was switched off: /run is empty then, /etc is not.
        shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    entries = [path.name for path in folder.iterdir()]
    return not entries or (entries == ["hosts"] and (folder / "hosts").read_text().startswith(ssh.MARK))


def _build(state: State) -> None:
    state.save()
    ssh.prepare(state)
    network.make_switch()
    for host in state.hosts:
        network.make_host(state, host)
        shape(host, state.rates[host])
        ssh.start(state, host)
    ssh.wait_until_reachable(state)
    state.ready = True
    state.save()


def down() -> bool:
    """Remove the cluster, whole or not. Returns whether there was one."""
    require_root()
    with locked():
        state = load()
        if state is not None:
            _remove(state)
    return state is not None


def _remove(state: State) -> None:
    with uninterrupted():
        ours = [*state.hosts, SWITCH]
        processes.end(lambda: ssh.servers() + [pid for name in ours for pid in processes.of_namespace(name)])
        for name in ours:
            network.remove_namespace(name)
        for host in state.hosts:
            shutil.rmtree(hosts_file(host).parent, ignore_errors=True)
        for folder in reversed(state.made):
            with suppress(OSError):  # gone, or somebody else's by now
                Path(folder).rmdir()
        forget()


def set_rate(rate: str, hosts: list[str]) -> None:
    """Change the rate of some hosts' links, or of all if `hosts` is empty, while they are used."""
    rate = parse_rate(rate)
    require_root()
    with locked():
        state = load_ready()
        for host in hosts:
            require_host(state, host)
        for host in hosts or state.hosts:
            shape(host, rate)
            state.rates[host] = rate
            state.save()


def require_host(state: State, host: str) -> None:
    if host not in state.hosts:
        raise ClusterError(f"there is no {host}; the cluster has {', '.join(state.hosts)}")


def counters() -> dict[str, dict[str, int]]:
    """Of each host, what its interface has received and sent."""
    require_root()
    return {host: network.counters(host) for host in load_ready().hosts}


def status() -> str:
    """A line a host of the cluster that is up."""
    require_root()
    return describe(load_ready())


def describe(state: State) -> str:
    """A line a host: name, address, rate, what runs."""
    lines = []
    for host in state.hosts:
        sshd = "sshd runs" if ssh.is_running(state, host) else "NO SSHD"
        count = len(processes.of_namespace(host))
        rate = state.rates.get(host, "none")
        lines.append(f"{host:8} {state.address(host):12} rate {rate:10} {sshd:10} {count} processes")
    return "\n".join(lines)

"""`python -m grawa_hvd doctor`: what each check says, and the command with real peers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_main import CPU, GPU

from grawa_hvd.doctor import environment, network, parts, peers
from grawa_hvd.doctor.finding import FAIL, PASS, WARN, Finding
from grawa_hvd.doctor.network import Network
from grawa_hvd.installation import Installation

LOOPBACK = {"lo": "127.0.0.1"}
MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "4"}
HOST = Network({**LOOPBACK, "eth0": "10.0.0.2"}, route="10.0.0.2", named="10.0.0.2")


def levels(found: list[Finding]) -> set[str]:
    """Those of the findings."""
    return {finding.level for finding in found}


@pytest.mark.parametrize("complete", [CPU, GPU])
def test_a_complete_installation_passes(complete: Installation) -> None:
    assert levels(parts.check(complete)) == {PASS}


@pytest.mark.parametrize(
    ("lacking", "level", "about"),
    [
        (replace(CPU, kernels=None), FAIL, "kernels"),
        (replace(GPU, kernels=CPU.kernels), WARN, "kernels"),
        (replace(CPU, transports=None), WARN, "Horovod"),
        (replace(CPU, transports=None, torch_transports={"Gloo": False, "NCCL": False}), FAIL, "transports"),
        (replace(GPU, devices=0), WARN, "CUDA"),
    ],
)
def test_what_is_missing(lacking: Installation, level: str, about: str) -> None:
    found = parts.check(lacking)
    assert (level, about) in {(finding.level, finding.about) for finding in found}
    assert about == "transports" or not any(one == (PASS, about, one.text) for one in found)


@pytest.mark.parametrize(
    ("capability", "level"), [((8, 0), PASS), ((8, 6), PASS), ((9, 0), PASS), ((10, 0), WARN), ((7, 5), FAIL)]
)
def test_kernels_run_on_their_own_generation(capability: tuple[int, int], level: str) -> None:
    built = replace(GPU, kernels={**(GPU.kernels or {}), "cuda_architectures": ["sm_80", "sm_90"]})
    (found,) = (one for one in parts.check(built, [capability]) if one.about == "device 0")
    assert found.level == level


@pytest.mark.parametrize(
    ("variables", "level", "text"),
    [
        ({}, PASS, "eth0, address 10.0.0.2"),
        ({"HOROVOD_GLOO_IFACE": "eth0"}, PASS, "Horovod's Gloo uses eth0 (10.0.0.2)"),
        ({"GLOO_SOCKET_IFNAME": "eth0,lo"}, PASS, "torch's Gloo uses eth0 (10.0.0.2), lo (127.0.0.1)"),
        ({"GLOO_SOCKET_IFNAME": "ib0"}, FAIL, "there are lo, eth0"),
        ({"HOROVOD_GLOO_IFACE": "eth0", "GLOO_SOCKET_IFNAME": "lo"}, WARN, "they differ"),
        ({"HOROVOD_GLOO_IFACE": "eth0", "NCCL_SOCKET_IFNAME": "eth"}, PASS, "NCCL uses eth0"),
    ],
)
def test_the_interface_that_is_named(variables: dict[str, str], level: str, text: str) -> None:
    found = network.check(HOST, variables)
    assert level in levels(found)
    assert levels(found) <= {PASS, level}
    assert any(text in finding.text for finding in found if finding.level == level)


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (Network(LOOPBACK, None, "127.0.0.1"), "this host can only train by itself"),
        (replace(HOST, route=None, interfaces={**HOST.interfaces, "ib0": "10.1.0.2"}), "there is no default route"),
        (replace(HOST, interfaces={**HOST.interfaces, "ib0": "10.1.0.2"}), "eth0 (10.0.0.2), ib0 (10.1.0.2)"),
        (replace(HOST, named="127.0.1.1"), "stands for 127.0.1.1"),
        (replace(HOST, named=None), "stands for no address"),
    ],
)
def test_an_interface_that_nobody_named_and_that_may_be_the_wrong_one(host: Network, text: str) -> None:
    (found,) = network.check(host, {})
    assert found.level == WARN
    assert text in found.text


def test_one_interface_is_enough_in_a_network_that_leads_nowhere_else() -> None:
    (found,) = network.check(replace(HOST, route=None), {})
    assert (found.level, found.text) == (PASS, "eth0, address 10.0.0.2")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("eth", ["eth0", "eth1"]),
        ("=eth1", ["eth1"]),
        ("^lo,eth0", ["eth1"]),
        ("^=eth", ["lo", "eth0", "eth1"]),
        ("ib", []),
    ],
)
def test_nccl_reads_beginnings_of_names(value: str, expected: list[str]) -> None:
    assert network.chosen("NCCL_SOCKET_IFNAME", value, ["lo", "eth0", "eth1"]) == expected


@pytest.mark.parametrize(
    ("variables", "ranks", "threads", "level", "text"),
    [
        ({}, 1, 8, PASS, "--ranks-per-host"),
        ({}, 4, 2, PASS, "threads of each: 2"),
        ({}, 4, 8, WARN, "set OMP_NUM_THREADS=2"),
        ({}, 16, 1, PASS, "ranks of this host: 16"),
        ({"HOROVOD_GLOO_TIMEOUT_SECONDS": "300"}, 1, 1, PASS, "300 s"),
        ({"HOROVOD_GLOO_TIMEOUT_SECONDS": "5"}, 1, 1, WARN, "later than that ends the job"),
        ({"HOROVOD_GLOO_TIMEOUT_SECONDS": "5 s"}, 1, 1, FAIL, "but is '5 s'"),
        ({**MASTER, "WORLD_SIZE": "8"}, 4, 1, FAIL, "on several hosts"),
        ({**MASTER, "WORLD_SIZE": "4"}, 4, 1, PASS, "port 1"),
        ({"MASTER_ADDR": "host1"}, 4, 1, FAIL, "MASTER_PORT is not set"),
    ],
)
def test_settings(variables: dict[str, str], ranks: int, threads: int, level: str, text: str) -> None:
    found = environment.check(variables, ranks, threads, processors=8, devices=0)
    assert levels(found) <= {PASS, level}
    assert any(text in finding.text for finding in found if finding.level == level)


def test_several_ranks_on_a_gpu() -> None:
    assert [levels(environment.check({}, ranks, 1, 8, devices=2)) for ranks in (2, 3)] == [{PASS}, {PASS, WARN}]


def test_ranks_of_a_host_are_those_of_the_launcher() -> None:
    launchers = {"HOROVOD_LOCAL_SIZE": "4"}, {"LOCAL_WORLD_SIZE": "2"}, {}
    assert [environment.ranks_of_host(variables) for variables in launchers] == [4, 2, 1]


def test_peers_are_written_with_a_port() -> None:
    assert [peers.parse(text) for text in ("host1:22", "[::1]:29400")] == [("host1", 22), ("::1", 29400)]
    for text in ("host1", ":22", "host1:", "host1:ssh", "host1:0", "host1:65536"):
        with pytest.raises(ValueError, match="host:port"):
            peers.parse(text)


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of this host where something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def doctor(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command, in an environment with these variables."""
    line = [sys.executable, "-m", "grawa_hvd", "doctor", *arguments]
    return subprocess.run(line, env={**os.environ, **variables}, capture_output=True, text=True)


def test_the_command_reaches_a_peer(listening: int) -> None:
    done = doctor("--peers", f"localhost:{listening}", GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"PASS  peer localhost:{listening}: reached in" in done.stdout
    assert "PASS  GLOO_SOCKET_IFNAME=lo: torch's Gloo uses lo (127.0.0.1)" in done.stdout
    assert done.stdout.endswith(", 0 FAIL\n")


def test_the_command_fails_where_a_peer_does_not_answer_or_is_unknown() -> None:
    with socket.socket() as reserved:  # bound, but nothing listens
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        done = doctor(
            "--peers", f"127.0.0.1:{port}", "nosuch.invalid:22", "--ranks-per-host", "1024", OMP_NUM_THREADS="2"
        )
    assert done.returncode == 1
    assert f"FAIL  peer 127.0.0.1:{port}: the host answers, but nothing listens" in done.stdout
    assert "FAIL  peer nosuch.invalid:22: the name is not known here" in done.stdout
    assert "WARN  OMP_NUM_THREADS" in done.stdout


def test_the_command_names_a_wrong_argument() -> None:
    for arguments, message in (["--peers", "host1"], "host:port"), (["--timeout", "0"], "--timeout must be above 0"):
        done = doctor(*arguments)
        assert done.returncode == 2
        assert message in done.stderr

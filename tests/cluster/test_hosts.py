"""Hosts have names, addresses and rates of their own; what runs on them ends with the command that started it."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from machine import call, running, start, succeed, wait_for

pytestmark = pytest.mark.usefixtures("cluster")

HOSTS = ["host1", "host2", "host3"]
HOROVODRUN = str(Path(sys.executable).parent / "horovodrun")


def test_every_host_reaches_every_other_by_name() -> None:
    for host in HOSTS:
        found = succeed("exec", host, "--", "sh", "-c", f"for h in {' '.join(HOSTS)}; do ssh $h hostname; done")
        assert found.split() == HOSTS


def test_status_has_a_line_a_host() -> None:
    lines = succeed("status").splitlines()
    assert [line.split()[0] for line in lines] == HOSTS
    assert all("rate 1gbit" in line and "sshd runs" in line for line in lines)


def test_exec_keeps_folder_environment_and_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAWA_TEST_WORD", "two words")
    found = call("exec", "host2", "--", "sh", "-c", 'pwd; echo "$GRAWA_TEST_WORD"; exit 7')
    assert found.returncode == 7
    assert found.stdout.splitlines() == [str(Path.cwd()), "two words"]


def test_exec_says_which_hosts_there_are() -> None:
    refused = call("exec", "host4", "--", "true")
    assert refused.returncode == 1
    assert refused.stderr == "cluster: there is no host4; the cluster has host1, host2, host3\n"


def test_exec_is_ended_when_its_time_is_over() -> None:
    words = ["sleep", "86397"]
    finished = call("exec", "--timeout", "1", "host1", "--", *words)
    assert finished.returncode == 124 and "not done after 1 s" in finished.stderr
    assert running(*words) == []


def test_exec_takes_what_it_left_in_the_background_with_it() -> None:
    succeed("exec", "host1", "--", "sh", "-c", "ssh host2 'sleep 86396 >/dev/null 2>&1 &'")
    assert running("sleep", "86396") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_exec_leaves_nothing_on_any_host(number: signal.Signals) -> None:
    words = ["sleep", "86399"]
    slots = ",".join(f"{host}:1" for host in HOSTS)
    launch = [HOROVODRUN, "--gloo", "--disable-cache", "-np", "3", "-H", slots, "--network-interfaces", "eth0", *words]
    interrupted = start("exec", "host1", "--", *launch)
    # One for each of three ranks, and those that pass the words on: shells, ssh, horovodrun.
    wait_for(lambda: sum(name == "sleep" for name in names(running(*words))) == 3)
    interrupted.send_signal(number)
    assert interrupted.wait(timeout=60) != 0
    assert running(*words) == []
    wait_for(lambda: all("1 processes" in line for line in succeed("status").splitlines()))


def names(pids: list[int]) -> list[str]:
    found = []
    for pid in pids:
        try:
            found.append(Path(f"/proc/{pid}/comm").read_text().strip())
        except OSError:
            continue
    return found


# Slow enough that a loaded machine, on which ssh alone takes seconds, is still faster without a limit.
MEGABYTES, MEGABITS = 5, 5
# The bucket is 131 kB, and lets that pass at once.
SECONDS = (MEGABYTES * 8e6 - 8 * (1 << 17)) / (MEGABITS * 1e6)


def seconds_to_send(source: str, to: str) -> float:
    began = time.monotonic()
    pipe = f"head -c {MEGABYTES}000000 /dev/zero | ssh {to} 'cat > /dev/null'"
    succeed("exec", source, "--", "sh", "-c", pipe)
    return time.monotonic() - began


def test_rate_limits_a_link_each_way_and_no_other() -> None:
    """A limited transfer cannot be faster than the rate; an unlimited one takes a fraction of that time."""
    succeed("rate", f"{MEGABITS}mbit", "host1")
    assert f"rate {MEGABITS}mbit" in succeed("status").splitlines()[0]
    assert seconds_to_send("host2", to="host1") >= SECONDS
    assert seconds_to_send("host1", to="host2") >= SECONDS
    assert seconds_to_send("host2", to="host3") < SECONDS
    succeed("rate", "none")
    assert seconds_to_send("host2", to="host1") < SECONDS
    succeed("rate", "1gbit")


def test_counters_count_what_was_sent() -> None:
    before = json.loads(succeed("bytes"))
    seconds_to_send("host2", to="host3")
    after = json.loads(succeed("bytes"))
    assert list(after) == HOSTS
    sent = after["host2"]["tx_bytes"] - before["host2"]["tx_bytes"]
    received = after["host3"]["rx_bytes"] - before["host3"]["rx_bytes"]
    # ssh and TCP add headers: 4.6 % at the smallest segments, and less than 50 kB to begin with.
    most = MEGABYTES * 1.06e6 + 5e4
    assert MEGABYTES * 1e6 < received < most and MEGABYTES * 1e6 < sent < most
    assert after["host1"]["tx_bytes"] - before["host1"]["tx_bytes"] < 1e4

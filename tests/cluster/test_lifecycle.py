"""A cluster comes up whole or not at all, takes nothing that is another's, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from machine import call, running, start, succeed, traces, wait_for

RECORD = Path("/run/grawa-cluster/state.json")
# What an `up` of three hosts makes, from its first trace to its last.
STAGES = [RECORD, Path("/etc/netns/host1/hosts"), Path("/run/netns/host1"), Path("/run/grawa-cluster/sshd.host3.log")]


def test_up_and_down_leave_the_machine_as_it_was(unchanged: dict[str, object]) -> None:
    succeed("up", "--hosts", "2", "--rate", "none")
    assert traces() != unchanged
    succeed("down")


def test_down_without_a_cluster_does_nothing(unchanged: dict[str, object]) -> None:
    assert succeed("down") == succeed("down") == "No cluster is up.\n"


def test_second_up_is_refused_and_harms_nothing(unchanged: dict[str, object]) -> None:
    succeed("up", "--hosts", "2")
    second = call("up", "--hosts", "3")
    assert second.returncode == 1 and "a cluster of 2 hosts is up" in second.stderr
    assert succeed("exec", "host1", "--", "ssh", "host2", "hostname") == "host2\n"
    succeed("down")


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.name)
def test_up_mends_what_a_killed_up_left(unchanged: dict[str, object], stage: Path) -> None:
    killed = start("up", "--hosts", "3")
    wait_for(stage.exists)
    killed.kill()
    killed.wait()
    assert traces() != unchanged
    assert "Removing what an interrupted run has left" in succeed("up", "--hosts", "2")
    assert succeed("exec", "host1", "--", "ssh", "host2", "hostname") == "host2\n"
    succeed("down")


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.name)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_up_leaves_nothing(unchanged: dict[str, object], stage: Path, number: signal.Signals) -> None:
    interrupted = start("up", "--hosts", "3")
    wait_for(stage.exists)
    interrupted.send_signal(number)
    assert interrupted.wait(timeout=60) == 128 + number


def test_namespace_of_another_is_neither_taken_nor_removed(unchanged: dict[str, object]) -> None:
    subprocess.run(["ip", "netns", "add", "host2"], check=True, timeout=20)
    try:
        refused = call("up", "--hosts", "3")
        succeed("down")
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1
        assert "there is a network namespace host2 already" in refused.stderr
        assert Path("/run/netns/host2").exists()
    finally:
        subprocess.run(["ip", "netns", "del", "host2"], check=True, timeout=20)


def test_files_of_another_are_neither_taken_nor_removed(unchanged: dict[str, object]) -> None:
    folder = Path("/etc/netns/host2")
    existed = folder.parent.exists()
    folder.mkdir(parents=True)
    try:
        (folder / "hosts").write_text("192.0.2.1 another\n")
        refused = call("up", "--hosts", "3")
        succeed("down")
        assert refused.returncode == 1 and f"there is a {folder} already" in refused.stderr
        assert (folder / "hosts").read_text() == "192.0.2.1 another\n"
    finally:
        (folder / "hosts").unlink()
        folder.rmdir()
        if not existed:
            folder.parent.rmdir()


def test_down_ends_what_a_killed_exec_left(unchanged: dict[str, object]) -> None:
    succeed("up", "--hosts", "2")
    words = ["sleep", "86398"]
    killed = start("exec", "host1", "--", "ssh", "host2", *words)
    # The shell that ssh starts on host2 may stay in front of it: ssh itself, and one or two there.
    wait_for(lambda: any(os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "sleep" for pid in running(*words)))
    killed.kill()
    killed.wait()
    succeed("down")
    assert running(*words) == []

"""What scripts/cluster says where it cannot do what is asked: one line, and nothing has been made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from machine import CLUSTER, ROOT, call


@pytest.mark.parametrize("command", ["up", "exec", "rate", "bytes", "status", "down"])
def test_every_command_explains_itself(command: str) -> None:
    finished = call(command, "--help")
    assert finished.returncode == 0 and "usage: cluster" in finished.stdout and finished.stderr == ""
    assert command in call("--help").stdout


def refusal(*arguments: str) -> str:
    """The one line with which a call is refused."""
    finished = call(*arguments)
    [line] = finished.stderr.splitlines()
    assert finished.returncode == 1 and finished.stdout == "" and line.startswith("cluster: ")
    return line


@pytest.mark.parametrize("hosts", ["0", "-1", "65"])
def test_number_of_hosts_is_checked(hosts: str) -> None:
    assert f"--hosts is {hosts}; it must be 1 to 64" in refusal("up", "--hosts", hosts)


@pytest.mark.parametrize("rate", ["1g", "fast", "0mbit", "9kbit", "1gbit; true", ""])
def test_rate_is_checked(rate: str) -> None:
    assert f"rate is {rate!r}" in refusal("rate", rate)


def test_exec_needs_a_command() -> None:
    assert "exec needs a command" in refusal("exec", "host1", "--")


@pytest.mark.parametrize("command", ["up", "status", "bytes", "down"])
def test_without_root_one_line_says_so(command: str) -> None:
    words = [shutil.which("python3", path="/usr/bin:/bin") or sys.executable, CLUSTER, command]
    if os.geteuid() == 0:
        nobody = shutil.which("setpriv")
        if nobody is None:
            pytest.skip("setpriv is missing: cannot give up root")
        words = [nobody, "--reuid", "65534", "--clear-groups", *words]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    finished = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if "Permission denied" in finished.stderr:
        pytest.skip("this checkout cannot be read by other users")
    assert finished.returncode == 1
    assert finished.stderr.splitlines() == [
        "cluster: needs root, which alone may make network namespaces: run it with sudo"
    ]

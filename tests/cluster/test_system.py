"""What is missing is installed where that is possible, named where not, and no service of the machine is started."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from virtual_cluster import system


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any of the programs; returns the folder in which they would be."""
    monkeypatch.setattr(system, "SYSTEM_PATH", str(tmp_path))
    monkeypatch.setattr(system, "START_POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def add_program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_missing_packages_are_named_where_they_cannot_be_installed(bare: Path) -> None:
    with pytest.raises(system.ClusterError, match="iproute2 openssh-client openssh-server"):
        system.install_missing()


@pytest.mark.parametrize("had_policy", [False, True])
def test_only_what_is_missing_is_installed_and_nothing_started(bare: Path, had_policy: bool) -> None:
    for name in ("ip", "tc", "ssh", "ssh-keygen"):
        add_program(bare, name, "true")
    if had_policy:
        add_program(bare, "policy-rc.d", "exit 7")
    add_program(bare, "apt-get", f'echo "$@" >> {bare}/asked; {bare}/policy-rc.d; echo "policy $?" >> {bare}/asked')
    system.install_missing()
    policy = "policy 7" if had_policy else "policy 101"
    install = "install -y -q --no-install-recommends openssh-server"
    assert (bare / "asked").read_text().splitlines() == ["update -q", policy, install, policy]
    assert (bare / "policy-rc.d").exists() == had_policy


def test_nothing_is_installed_where_nothing_is_missing(bare: Path) -> None:
    for name in system.PACKAGES:
        add_program(bare, name, "true")
    add_program(bare, "apt-get", "exit 1")
    system.install_missing()


def test_a_failed_command_is_told_in_one_line(bare: Path) -> None:
    add_program(bare, "ip", "echo before >&2; echo the reason >&2; exit 2")
    with pytest.raises(system.ClusterError, match=r"^`ip link` failed: the reason$"):
        system.run("ip", "link")


def test_a_command_that_hangs_is_ended(bare: Path) -> None:
    add_program(bare, "ip", "exec /bin/sleep 60")
    with pytest.raises(system.ClusterError, match=r"^`ip link` was not done after 0 s$"):
        system.run("ip", "link", seconds=0.1)
    assert subprocess.run(["/usr/bin/pgrep", "-f", f"{bare}/ip"], check=False, timeout=20).returncode == 1

"""The machine underneath: commands with time limits, and what must be there before a cluster can be."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Where Debian keeps them is not on every user's PATH.
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
SECONDS_TO_INSTALL = 300
START_POLICY = Path("/usr/sbin/policy-rc.d")


class ClusterError(Exception):
    """What the user is told, in one line."""


def tool(name: str) -> str:
    """The path of a program.

    Raises:
        ClusterError: if it is not installed.
    """
    found = shutil.which(name, path=SYSTEM_PATH) or shutil.which(name)
    if found is None:
        raise ClusterError(f"{name} is missing; on Debian it is in the package {PACKAGES.get(name, name)}")
    return found


def run(*command: str, seconds: float = 20, environment: dict[str, str] | None = None) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        ClusterError: if it fails or takes longer than `seconds`; with the last line of its errors.
    """
    try:
        finished = subprocess.run(
            [tool(command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{' '.join(command)}` was not done after {seconds:.0f} s") from None
    if finished.returncode:
        said = (finished.stderr.strip() or finished.stdout.strip()).splitlines()
        reason = said[-1] if said else f"exit code {finished.returncode}"
        raise ClusterError(f"`{' '.join(command)}` failed: {reason}")
    return finished.stdout


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and the like: for a removal, which would otherwise stop half way."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("needs root, which alone may make network namespaces: run it with sudo")


def require_namespaces() -> None:
    """Try on a throw-away set of namespaces whether this machine allows them: not all containers do."""
    try:
        run("unshare", "--net", "--uts", "--mount", "true")
    except ClusterError as error:
        raise ClusterError(f"this machine does not allow network namespaces ({error})") from None


def install_missing() -> None:
    """Install what is missing of iproute2 and OpenSSH, on Debian and its like.

    Raises:
        ClusterError: if something is missing and cannot be installed.
    """
    missing = [name for name in PACKAGES if shutil.which(name, path=SYSTEM_PATH) is None and shutil.which(name) is None]
    if not missing:
        return
    packages = sorted({PACKAGES[name] for name in missing})
    if shutil.which("apt-get", path=SYSTEM_PATH) is None:
        raise ClusterError(f"missing: {', '.join(missing)}; install what Debian calls {' '.join(packages)}")
    print(f"Installing {' '.join(packages)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": SYSTEM_PATH}
    with _services_not_started():
        run("apt-get", "update", "-q", seconds=SECONDS_TO_INSTALL, environment=environment)
        run(
            *("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages),
            seconds=SECONDS_TO_INSTALL,
            environment=environment,
        )


@contextmanager
def _services_not_started() -> Iterator[None]:
    """openssh-server would open port 22 of the machine itself; Debian asks this file first. An existing one is kept."""
    if START_POLICY.exists():
        yield
        return
    START_POLICY.write_text("#!/bin/sh\nexit 101\n")
    START_POLICY.chmod(0o755)
    try:
        yield
    finally:
        START_POLICY.unlink()

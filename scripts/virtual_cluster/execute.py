"""A command on a host, and the end of all that it started, on whichever host, when it ends."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys

from .lifecycle import require_host
from .network import INTERFACE
from .processes import RUN_VARIABLE, end, of_run
from .ssh import PROGRAMS, enter, is_running
from .state import load_ready
from .system import ClusterError, require_root, tool, uninterrupted

TIMED_OUT = 124
# What is not set already. Many ranks share this machine's cores: one thread each, and patience with the last to start.
DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "300",
    "HOROVOD_GLOO_IFACE": INTERFACE,
    "GLOO_SOCKET_IFNAME": INTERFACE,
    "NCCL_SOCKET_IFNAME": INTERFACE,
}


def execute(host: str, command: list[str], seconds: float | None = None) -> int:
    """Run a command on a host, in the present folder and environment, its input and output those of the caller.

    Args:
        host: where.
        command: program and arguments.
        seconds: the longest that it may take; None for no limit.

    Returns:
        Its exit code, 128 + the signal's number if a signal ended it, or 124 if it ran out of time.

    Raises:
        ClusterError: if there is no such host.
    """
    require_root()
    state = load_ready()
    require_host(state, host)
    if not is_running(state, host):
        raise ClusterError(f"{host} is not whole; `scripts/cluster down`, then `up`")
    token = secrets.token_hex(8)
    # Entering the host's files leaves the present folder: it has to be found again inside.
    inside = [tool("env"), f"--chdir={os.getcwd()}", *command]
    process = None
    try:
        process = subprocess.Popen([*enter(state, host), *inside], env=environment(token))
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"cluster: not done after {seconds:.0f} s, ended", file=sys.stderr)
        code = TIMED_OUT
    finally:
        with uninterrupted():
            end(lambda: of_run(token))
            if process is not None:
                process.wait()
    return code if code >= 0 else 128 - code


def environment(token: str) -> dict[str, str]:
    path = f"{PROGRAMS}:{os.environ.get('PATH', os.defpath)}"
    return {**DEFAULTS, **os.environ, "PATH": path, RUN_VARIABLE: token}

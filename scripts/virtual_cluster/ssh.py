"""ssh from any host to any host without a question: keys, an sshd a host, and an `ssh` that knows them."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path

from .network import hosts_file
from .processes import RUN_VARIABLE, in_namespace, with_argument
from .state import FOLDER, State
from .system import ClusterError, run, tool

CLIENT_KEY, HOST_KEY = FOLDER / "client_key", FOLDER / "host_key"
CLIENT_CONFIG, KNOWN_HOSTS = FOLDER / "ssh_config", FOLDER / "known_hosts"
SERVER_CONFIG = FOLDER / "sshd_config"
# First on the PATH of an `exec`: horovodrun calls plain `ssh`.
PROGRAMS = FOLDER / "bin"
SECONDS_TO_START = 30.0
MARK = "# Of scripts/cluster, which removes it."


def prepare(state: State) -> None:
    """Everything that is alike on all hosts, and the names."""
    for key in (CLIENT_KEY, HOST_KEY):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "grawa-cluster", "-f", str(key))
    public = HOST_KEY.with_suffix(".pub").read_text()
    KNOWN_HOSTS.write_text("".join(f"{host},{state.address(host)} {public}" for host in state.hosts))
    CLIENT_CONFIG.write_text(client_config(state))
    PROGRAMS.mkdir()
    wrapper = PROGRAMS / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(tool("ssh"))} -F {CLIENT_CONFIG} "$@"\n')
    wrapper.chmod(0o755)
    # sshd confines itself to this folder, and does not start without it.
    state.make_folder(Path("/run/sshd"))
    for host in state.hosts:
        state.make_folder(hosts_file(host).parent.parent)
        hosts_file(host).parent.mkdir()
        hosts_file(host).write_text(names(state, host))


def names(state: State, host: str) -> str:
    others = "".join(f"{state.address(name)} {name}\n" for name in state.hosts)
    return f"{MARK}\n127.0.0.1 localhost\n{others}"


def client_config(state: State) -> str:
    return f"""Host {" ".join(state.hosts)}
  User root
  IdentityFile {CLIENT_KEY}
  IdentitiesOnly yes
  UserKnownHostsFile {KNOWN_HOSTS}
  GlobalKnownHostsFile /dev/null
  BatchMode yes
  ConnectTimeout 20
  SendEnv {RUN_VARIABLE}
"""


def server_config(state: State, host: str) -> str:
    # Without PAM an account whose password is locked, as root's may be, is refused even with a key.
    locked = any(line.startswith("root:!") for line in Path("/etc/shadow").read_text().splitlines())
    # horovodrun connects once a rank, all at the same time.
    return f"""ListenAddress {state.address(host)}
HostKey {HOST_KEY}
AuthorizedKeysFile {CLIENT_KEY.with_suffix(".pub")}
AllowUsers root
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {"yes" if locked else "no"}
MaxStartups 1000
AcceptEnv {RUN_VARIABLE}
PidFile none
PrintMotd no
"""


def start(state: State, host: str) -> None:
    """Start a host's sshd; it holds the host's name and view of /etc/hosts, which `exec` enters."""
    config = Path(f"{SERVER_CONFIG}.{host}")
    config.write_text(server_config(state, host))
    with log(host).open("wb") as output:
        process = subprocess.Popen(
            [
                *(tool("ip"), "netns", "exec", host, tool("unshare"), "--uts", "/bin/sh", "-c"),
                'hostname "$0" && exec "$@"',
                *(host, tool("sshd"), "-D", "-e", "-f", str(config)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # So that Ctrl-C in the terminal is for this command alone.
            start_new_session=True,
        )
    state.sshd[host] = process.pid
    state.save()


def log(host: str) -> Path:
    return FOLDER / f"sshd.{host}.log"


def is_running(state: State, host: str) -> bool:
    return host in state.sshd and in_namespace(state.sshd[host], host)


def servers() -> list[int]:
    """All sshds of the cluster, those included that have not reached their host's namespace yet."""
    return with_argument(f"{SERVER_CONFIG}.")


def enter(state: State, host: str) -> list[str]:
    """The beginning of a command that runs on a host: in the network, with the name and the files of its sshd."""
    return [tool("nsenter"), "--target", str(state.sshd[host]), "--net", "--uts", "--mount", "--"]


def wait_until_reachable(state: State) -> None:
    """Until the first host reaches all by their names and they answer with those names.

    Raises:
        ClusterError: if one does not in time; with the last line of its log.
    """
    deadline = time.monotonic() + SECONDS_TO_START
    for host in state.hosts:
        while (reason := _unreachable(state, host)) is not None:
            if time.monotonic() > deadline:
                said = log(host).read_text(errors="replace").strip().splitlines()
                raise ClusterError(f"{host} does not answer over ssh: {said[-1] if said else reason}")
            time.sleep(0.1)


def _unreachable(state: State, host: str) -> str | None:
    if not is_running(state, state.hosts[0]):
        return f"{state.hosts[0]} is not there"
    try:
        answer = run(*enter(state, state.hosts[0]), str(PROGRAMS / "ssh"), host, "hostname")
    except ClusterError as error:
        return str(error)
    return None if answer.strip() == host else f"it calls itself {answer.strip()}"

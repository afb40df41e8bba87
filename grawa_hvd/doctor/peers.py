"""Whether other hosts can be reached."""

from __future__ import annotations

import socket
import time

from grawa_hvd.doctor.finding import FAIL, PASS, Finding


def parse(text: str) -> tuple[str, int]:
    """host:port; an IPv6 address stands in brackets.

    Raises:
        ValueError: if it is written in another way.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"a peer is written as host:port, port from 1 to 65535, but this is {text!r}")
    return host, int(port)


def check(host: str, port: int, timeout: float) -> Finding:
    """Open a TCP connection and close it again.

    Args:
        timeout: seconds to wait for an answer.
    """
    about, start = f"peer {host}:{port}", time.perf_counter()
    try:
        with socket.create_connection((host, port), timeout):
            return Finding(PASS, about, f"reached in {1e3 * (time.perf_counter() - start):.1f} ms")
    except socket.gaierror as error:
        text = f"the name is not known here ({error.strerror}): mend /etc/hosts or DNS, or give the address."
    except TimeoutError:
        text = f"no answer within {timeout:g} s: is the host up, and does a firewall let this port through?"
    except ConnectionRefusedError:
        text = "the host answers, but nothing listens on this port: give one that does (ssh's is 22), or start it."
    except OSError as error:
        text = f"not reached: {error.strerror or error}."
    return Finding(FAIL, about, text)

"""The processes of a job, by a mark in the environment of all that it starts."""

from __future__ import annotations

import os
import signal
import time

import psutil

MARK = "GRAWA_ELASTIC_MARK"


def left(mark: str, seconds: float) -> list[int]:
    """Processes of a job that are still there after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except psutil.Error:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def kill(pids: list[int]) -> None:
    """End processes that a test has left."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue

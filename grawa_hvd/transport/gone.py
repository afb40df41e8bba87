"""Errors of a backend that say what has happened where a worker is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# What Horovod, and Gloo below torch.distributed, say then.
SIGNS = re.compile(r"shut down|timed out|connection|broken pipe|socket", re.IGNORECASE)


@contextmanager
def explained(backend: str, limit: str) -> Iterator[None]:
    """Let errors about lost workers keep their kind, by which elastic jobs go, and say more.

    Args:
        backend: who raises them.
        limit: how long the backend waits for a worker.
    """
    try:
        yield
    except RuntimeError as error:
        if not SIGNS.search(str(error)):
            raise
        raise type(error)(
            f"a worker is gone: it has died or ended, or has stood still for longer than {limit}. Its own output, and "
            f"what {backend} wrote before this, may say why. {backend} says: {error}"
        ) from error

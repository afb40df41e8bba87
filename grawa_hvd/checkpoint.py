"""Checkpoints of a run of several workers: whole or not there, and to be taken up by as many workers or by others."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from grawa_hvd.checkpoint_tools import STATE_KEY
from grawa_hvd.rounds.agreement import gather_bytes
from grawa_hvd.rounds.member_state import for_another_worker
from grawa_hvd.transport.base import Transport

FORMAT = 1
KINDS: tuple[type[Exception], ...] = (FileNotFoundError, OSError, ValueError, Exception)
PART = r"\.[0-9a-f]{32}\.worker\d+"


def save(path: str | os.PathLike[str], model: torch.nn.Module, optimizer: Any, **more: Any) -> None:
    """Write a checkpoint; a collective of all workers.

    The file `path` holds the mean of the workers, with `consensus()`. Beside it each worker writes a part of its own,
    whose name begins alike: its model, its optimizer's state, and `more`. All of them see one folder. The file is put
    in its place when all parts have been written, and earlier parts are deleted after that: whatever is killed before,
    the earlier checkpoint stays whole.

    Args:
        path: of the file; its folder exists.
        model: of which the optimizer has the parameters.
        optimizer: of `DistributedGrawaOptimizer`.
        more: tensors, numbers, texts, and lists and dicts of these, as the epoch or a scheduler's state_dict.

    Raises:
        ValueError: if the optimizer is another one, or this process is none of its workers.
        OSError: on every rank, if a worker cannot write its part.
        RuntimeError: on every rank, if a worker has something that cannot be loaded again.
    """
    transport, path = _transport(optimizer), Path(path)
    own = {"optimizer": optimizer.state_dict(), "model": model.state_dict(), "more": more}  # a round is finished first
    token = gather_bytes(uuid.uuid4().hex.encode(), transport, "checkpoint.token")
    name = next(one for one in token if one).decode()
    parts = [f"{path.name}.{name}.worker{rank}" if one else None for rank, one in enumerate(token)]
    _together(transport, lambda: _write(path.with_name(str(parts[transport.rank])), own))
    is_first = transport.rank == next(rank for rank, part in enumerate(parts) if part)
    with optimizer.consensus():
        whole = {"format": FORMAT, "parts": parts, "model": model.state_dict()}
        _together(transport, lambda: _put_in_place(path, whole) if is_first else None)


def load(path: str | os.PathLike[str], model: torch.nn.Module, optimizer: Any) -> dict[str, Any]:
    """Take a run up from a checkpoint; a collective of all workers. Executes nothing that the files hold.

    As many workers as wrote it go on bitwise, each from its own part. Of another number each starts from the mean of
    the workers, with the first worker's optimizer state, its centre and its counters. The period, the policy and the
    transport may be others than before.

    Args:
        path, model, optimizer: as of `save`.

    Returns:
        `more`: what this worker gave, or, of another number of workers, what the first did.

    Raises:
        ValueError: if the optimizer is another one; on every rank, if the file is no such checkpoint, or shapes differ.
        FileNotFoundError: on every rank, if there is none, or a part of it is missing for a worker.
    """
    transport, path = _transport(optimizer), Path(path)
    parts: list[Any] = []
    more: dict[str, Any] = {}

    def load_own() -> None:
        whole = _read(path)
        if not _is_whole(whole):
            raise _no_checkpoint(path)
        parts.extend(whole["parts"])
        as_many = len(parts) == transport.size and parts[transport.rank] is not None
        part = path.with_name(parts[transport.rank] if as_many else next(filter(None, parts)))
        own = _read(part)
        if not (isinstance(own, dict) and own.keys() >= {"model", "optimizer", "more"}):
            raise _no_checkpoint(part)
        model.load_state_dict(own["model"] if as_many else whole["model"])
        optimizer.load_state_dict(own["optimizer"] if as_many else _of_another(own["optimizer"]))
        more.update(own["more"])

    _together(transport, load_own)
    found = gather_bytes(repr(parts).encode(), transport, "checkpoint.parts")
    if len(set(filter(None, found))) > 1:
        raise ValueError(f"the workers have read different checkpoints from {path}: its folder is not one for all")
    return more


def _of_another(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, STATE_KEY: for_another_worker(state[STATE_KEY])} if STATE_KEY in state else state


def _transport(optimizer: Any) -> Transport:
    transport = getattr(optimizer, "_transport", None)
    if not isinstance(transport, Transport):
        raise ValueError(f"optimizer must be a DistributedGrawaOptimizer, but is a {type(optimizer).__name__}")
    if not transport.is_member:
        raise ValueError("optimizer must be one of a worker, but this process is outside its process set or group")
    return transport


def _together(transport: Transport, work: Callable[[], None]) -> None:
    """Do something on each worker and learn whether it went well on all; a collective.

    Raises:
        OSError, ValueError, RuntimeError: what was raised here; of another worker's error the same kind with its text.
    """
    failure: Exception | None = None
    try:
        work()
    except Exception as error:  # any: the others wait
        failure = error
    kind = next(number for number, one in enumerate(KINDS) if failure is None or isinstance(failure, one))
    told = b"" if failure is None else f"{kind} {failure}".encode()
    texts = gather_bytes(told, transport, "checkpoint.done")
    if failure is not None:
        raise failure
    for rank, text in enumerate(texts):
        if text:
            number, _, message = text.decode().partition(" ")
            raise (*KINDS[:-1], RuntimeError)[int(number)](f"on {transport.label([rank])}: {message}")


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of a damaged file torch raises what it likes
        raise _no_checkpoint(path) from error


def _no_checkpoint(path: Path) -> ValueError:
    return ValueError(
        f"path must be a checkpoint of grawa_hvd.checkpoint.save, but {path} is none: damaged, or of something else"
    )


def _is_whole(read: Any) -> bool:
    parts = read.get("parts") if isinstance(read, dict) and read.get("format") == FORMAT else None
    is_list = isinstance(parts, list) and all(one is None or isinstance(one, str) for one in parts)
    return is_list and any(parts or []) and isinstance(read.get("model"), dict)


def _write(path: Path, value: Any) -> None:
    """Write a file down to the disk, and see that it can be loaded."""
    with path.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        path.unlink()
        raise RuntimeError(
            f"a checkpoint takes tensors, numbers, texts, and lists and dicts of them: {error}"
        ) from error


def _put_in_place(path: Path, whole: dict[str, Any]) -> None:
    """Replace the file in one move, and delete what no checkpoint of this name needs any more."""
    token = next(filter(None, whole["parts"])).split(".")[-2]
    temporary = path.with_name(f"{path.name}.{token}.worker{len(whole['parts'])}")
    _write(temporary, whole)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    for other in path.parent.iterdir():
        if re.fullmatch(re.escape(path.name) + PART, other.name) and other.name not in whole["parts"]:
            other.unlink()

"""What users pass by mistake is refused at once: a ValueError or TypeError that names the argument and its value."""

from __future__ import annotations

import io
import itertools
import math
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from workers import Learner, learn

import grawa_hvd
from grawa_hvd import __main__ as command
from grawa_hvd import averaging, checkpoint, scores, topology
from grawa_hvd.averaging.registry import POLICIES
from grawa_hvd.flatness import __main__ as flatness_command
from grawa_hvd.topology import __main__ as topology_command
from grawa_hvd.transport.local import run_workers

fuzzed = settings(max_examples=300, derandomize=True, database=None, phases=[Phase.generate])

TEXTS = st.text("abz 0.-", max_size=4)
ANY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.binary(max_size=3), st.just([]),
    st.lists(st.integers(), max_size=2), st.dictionaries(TEXTS, st.integers(), max_size=1), st.builds(object),
    st.just(complex(1, 2)), st.just(torch.ones(2)), st.just(np.ones(2)),
    st.just(np.float64("nan")), st.just(torch.tensor(math.nan)), st.just(int), st.just(10**400),
)  # fmt: skip


def number(least: float, below: float = math.inf) -> Callable[[Any], bool]:
    return lambda x: type(x) in (int, float) and least <= x < below


def integer(least: int, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda x: type(x) is int and least <= x <= min(most, 2**53)


def never(value: Any) -> bool:
    return False


# What is right, as far as what is drawn may be. `int` is a callable.
OPTIMIZER: dict[str, Callable[[Any], bool]] = {
    "optimizer": never,
    "named_parameters": lambda x: x is None,
    "compression": never,
    "backward_passes_per_step": lambda x: type(x) is int and x >= 1,
    "op": lambda x: x is None,
    "gradient_predivide_factor": lambda x: x == 1,
    "groups": lambda x: x is None or (type(x) is int and x >= 1) or x == [],
    "averaging": lambda x: x in POLICIES,
    "period": lambda x: x is int or integer(1)(x),
    "pull": number(0, 1 + 1e-9),
    "proximity": number(0, 32 + 1e-9),
    "warmup_steps": integer(0),
    "outer_momentum": number(0, 1),
    "outer_optimizer": lambda x: x is None,
    "scores": lambda x: x is int,
    "layers": never,
    "overlap": integer(0, 31),
    "fragments": integer(1, 32),
    "local_period": lambda x: x is None or integer(1, 31)(x),
    "on_round": lambda x: x is None or x is int,
    "optimizer_state": never,
    "optimizer_state_period": integer(1),
    "process_set": never,
    "device_mesh": never,
    "buffers": lambda x: type(x) in (list, dict) and not x,
}


def is_right(value: Any, right: Callable[[Any], bool]) -> bool:
    try:
        return bool(right(value))
    except (TypeError, ValueError, RuntimeError):  # of a comparison with an array, or a lookup of a list
        return False


def refuses(name: str, make: Callable[[], Any], right: bool, *more: str) -> None:
    """That it is done if that is right, and else refused by name."""
    if right:
        make()
        return
    with pytest.raises((ValueError, TypeError)) as raised:
        make()
    assert any(one in str(raised.value) for one in (name, *more)), (name, str(raised.value))


def optimizer_of(**options: Any) -> Any:
    model = torch.nn.Linear(2, 2)
    (transport,) = run_workers(1, lambda transport: transport)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    given_ = {"optimizer": plain, "named_parameters": model.named_parameters(), "process_group": transport, **options}
    return grawa_hvd.DistributedGrawaOptimizer(**given_)


@fuzzed
@given(st.sampled_from(sorted(OPTIMIZER)), ANY)
def test_the_optimizers_arguments(name: str, value: Any) -> None:
    right = is_right(value, OPTIMIZER[name]) or (name in ("process_set", "device_mesh") and value is None)
    more = {"groups": ["parameter"], "named_parameters": ["named"]}.get(name, [])
    refuses(name, lambda: optimizer_of(**{name: value}), right, *more)


OUTER = (averaging.DiLoCo, averaging.SlowMo, averaging.BMUF)


def qsr(**options: Any) -> grawa_hvd.QSR:
    return grawa_hvd.QSR(**{"base": 2, "a": 0.1, "lr": int, **options})


FIELDS: list[tuple[Callable[..., Any], str, Callable[[Any], bool]]] = [
    *((policy, "floor", number(0, 1 + 1e-9)) for policy in (averaging.GRAWA, averaging.MGRAWA, averaging.LGRAWA)),
    (averaging.EASGD, "beta", lambda x: number(0, 1 + 1e-9)(x) and x > 0),
    (averaging.LSGD, "window", integer(1)),
    (averaging.DPPF, "alpha", lambda x: number(0, 1 + 1e-9)(x) and x > 0),
    (averaging.DPPF, "push", lambda x: number(0)(x) or x == math.inf),
    *((averaging.EDiT, name, lambda x: type(x) in (int, float) and x > 0) for name in ("temperature", "threshold")),
    (averaging.EDiT, "decay", number(0, 1)),
    (averaging.EDiT, "warmup", integer(1)),
    (averaging.Weighted, "by", lambda x: x is int),
    (averaging.Weighted, "power", lambda x: type(x) in (int, float) and x >= 0),
    (averaging.Weighted, "temperature", lambda x: type(x) in (int, float) and x > 0),
    *((kind, "lr", lambda x: type(x) in (int, float) and x > 0) for kind in OUTER),
    *((kind, "momentum", number(0, 1)) for kind in OUTER),
    (averaging.Decentralized, "graph", never),
    (scores.LocalScores, "decay", number(0, 1)),
    (lambda **o: scores.FreshScores(**{"backward": int, **o}), "decay", number(0, 1)),
    (lambda **o: scores.HeldOutScores(**{"backward": int, **o}), "backward", lambda x: x is int),
    (qsr, "base", integer(1)),
    (qsr, "a", lambda x: type(x) in (int, float) and x > 0),
    (qsr, "lr", lambda x: x is int),
    (topology.RandomPairs, "seed", lambda x: type(x) is int),
    (lambda **o: topology.named(**{"name": "ring", "workers": 4, **o}), "name", never),
    (lambda **o: topology.named(**{"name": "ring", "workers": 4, **o}), "workers", integer(1, 999)),
    (lambda **o: topology.lattice(**{"workers": 6, "degree": 2, **o}), "workers", integer(3, 999)),
    (lambda **o: topology.lattice(**{"workers": 6, "degree": 2, **o}), "degree", integer(2, 5)),
    (lambda **o: topology.search(**{"workers": 6, "degree": 2, **o}), "steps", never),
    (topology.mixing_matrix, "graph", never),
]  # fmt: skip


@fuzzed
@given(st.sampled_from(FIELDS), ANY)
def test_policies_scores_periods_and_graphs(field: tuple[Any, str, Any], value: Any) -> None:
    make, name, right = field
    if name == "workers" and type(value) is int and value > 999:
        return  # right, and slow
    if name == "steps" and (value is None or (type(value) is int and value > 0)):
        return
    refuses(name, lambda: make(**{name: value}), is_right(value, right), "graph")


SIMULATE: dict[str, Callable[[Any], bool]] = {
    "loss": never, "shards": never, "workers": never, "optimizer": never, "steps": never, "batch_size": never,
    "averaging": never, "period": never, "pull": never, "layers": never, "scores": never, "seed": never,
    "accuracy": lambda x: x is None, "evaluate": lambda x: x is None, "every": lambda x: x is None or integer(1)(x),
    "chunk_size": lambda x: x is None,
}  # fmt: skip
BAD = [-1, 0.5, "x", math.nan, object(), b"x", {}, [3]]


@pytest.mark.parametrize("name", sorted(SIMULATE))
def test_what_a_simulation_is_told(name: str) -> None:
    model, pair = torch.nn.Linear(2, 1), (torch.ones(8, 2), torch.ones(8, 1))
    right: dict[str, Any] = {
        "loss": torch.nn.functional.mse_loss,
        "shards": pair,
        "workers": 2,
        "steps": 1,
        "progress": False,
    }
    for value in BAD:
        if (name, value) == ("pull", 0.5):
            continue
        with pytest.raises((ValueError, TypeError), match=name):
            grawa_hvd.simulate(model, **{**right, name: value})


# Files that are no checkpoints.


class Exploit:
    """Leaves a trace if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def garbage(folder: Path, written: bytes) -> list[bytes]:
    """Random bytes, pieces of a checkpoint and other pickles."""
    drawn = random.Random(5)
    saved = io.BytesIO()
    torch.save({"format": 1, "parts": [Exploit(folder / "trace")]}, saved)
    others = [
        {}, 3, "x", {"format": 1}, {"format": 1, "parts": 3}, {"format": 1, "parts": []},
        {"format": 1, "parts": [None]}, {"format": 1, "parts": ["gone"], "model": 3},
        {"format": 2, "parts": ["x"], "model": {}},
    ]  # fmt: skip
    files = [drawn.randbytes(drawn.randrange(200)) for _ in range(100)]
    files += [written[: drawn.randrange(len(written))] for _ in range(100)]
    files += [pickle.dumps(Exploit(folder / "trace")), saved.getvalue(), *map(pickle.dumps, others)]
    for other in others:
        file = io.BytesIO()
        torch.save(other, file)
        files.append(file.getvalue())
    return files


@pytest.mark.fault("checkpoint")
def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"

    def work(learner: Learner) -> int:
        learner.step(5)
        checkpoint.save(path, learner.model, learner.optimizer)
        before, refused = learner.flat(), 0
        for file in garbage(tmp_path, path.read_bytes()):
            path.write_bytes(file)
            with pytest.raises(ValueError, match=r"path must be a checkpoint of grawa_hvd\.checkpoint\.save"):
                checkpoint.load(path, learner.model, learner.optimizer)
            refused += 1
        assert torch.equal(learner.flat(), before)
        return refused

    assert learn(1, work) == [220]
    assert not (tmp_path / "trace").exists()


@pytest.mark.fault("checkpoint")
def test_parts_of_a_checkpoint_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"

    def work(learner: Learner) -> None:
        learner.step(5)
        checkpoint.save(path, learner.model, learner.optimizer)
        (part,) = tmp_path.glob("*.worker0")
        whole = part.read_bytes()
        for size in range(0, len(whole), len(whole) // 20):
            part.write_bytes(whole[:size])
            with pytest.raises(ValueError, match="worker0 is none: damaged"):
                checkpoint.load(path, learner.model, learner.optimizer)

    learn(1, work)


# Commands.

WORDS = ["-1", "0", "x", "nan", "inf", "1e400", "", "1gbit", "25M", "--workers", "None", "-0"]
PLAN = {"--parameters": "25M", "--step-time": "0.1", "--link": "1gbit", "--workers": "8"}


def exits_with_advice(main: Callable[[list[str]], Any], arguments: list[str], capsys: Any) -> bool:
    """Whether it was refused: status 2 and a message. All else is that it was done."""
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 2, arguments
        assert "error:" in capsys.readouterr().err
        return True
    return False


def test_plan_is_told_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    refused = 0
    for option, word in itertools.product([*PLAN, "--hosts", "--dtype", "--share", "--device"], WORDS):
        arguments = [part for pair in {**PLAN, option: word}.items() for part in pair]
        refused += exits_with_advice(command.main, ["plan", *arguments], capsys)
    assert refused >= 80


@pytest.mark.parametrize("option", ["--timeout", "--ranks-per-host", "--peers"])
@pytest.mark.parametrize("word", ["-1", "0", "x", "nan", "inf", "", "a:b:c"])
def test_doctor_is_told_nonsense(option: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits_with_advice(command.main, ["doctor", option, word], capsys)


@pytest.mark.parametrize("word", ["-1", "0", "x", "nan", "2", "1.5", ""])
@pytest.mark.parametrize("option", ["--workers", "--degree", "--steps"])
def test_topology_is_told_nonsense(option: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    right = {"--workers": "6", "--degree": "3", "--steps": "1"}
    arguments = [part for pair in {**right, option: word}.items() for part in pair]
    refused = exits_with_advice(topology_command.main, arguments, capsys)
    assert refused or (option, word) in (("--degree", "2"), ("--steps", "2"))


def small_model() -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


def loader() -> list[Any]:
    return [(torch.ones(2, 2), torch.zeros(2, dtype=torch.long))]


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--model", "x"), ("--model", "no.such:thing"), ("--model", ":"), ("--data", "os:nothing"), ("--loss", "x"),
        ("--iterations", "0"), ("--iterations", "x"), ("--vectors", "1"), ("--device", "nowhere"),
        ("--weights", "no_such_file"), ("--weights", __file__),
    ],
)  # fmt: skip
def test_flatness_is_told_nonsense(option: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    right = {"--model": f"{__name__}:small_model", "--data": f"{__name__}:loader"}
    arguments = [part for pair in {**right, option: word}.items() for part in pair]
    assert exits_with_advice(flatness_command.main, [*arguments, "--quiet"], capsys)

"""How far compression takes the centre from where it would be, round by round, with and without feedback.

    horovodrun -np 2 -H localhost:2 python -m benchmarks.compression_error

Every worker makes the same moves whatever the compression, so that all that differs is the rounding on the wire. Where
workers repeat their move, so do the errors, and add up. Feedback makes good what a worker's own rounding took; of the
rounding of sums on the wire no worker knows, and that is what is left where several move.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor, nn

import grawa_hvd

RESULTS = Path(__file__).parent / "results"
ELEMENTS = 10_000
CASES = {
    "new moves": "moves drawn anew in each round",
    "repeated moves": "each worker repeats its move",
    "one worker": "one worker moves, always alike",
}


def moves_of(case: str, rounds: int, workers: int) -> Tensor:
    """What each worker subtracts from its parameters before each round, float64, [rounds, workers, ELEMENTS]."""
    generator = torch.Generator().manual_seed(0)
    shape = (rounds, workers, ELEMENTS)
    if case == "new moves":
        return torch.randn(shape, generator=generator).double()
    repeated = torch.randn(shape[1:], generator=generator).double()
    if case == "one worker":
        repeated[1:] = 0
    return repeated.expand(shape)


def errors(moves: Tensor, pull: float, feedback: bool) -> list[float]:
    """‖c − c*‖ over the mean ‖move‖ for each round, c* the centre of workers whose differences travel whole.

    Args:
        moves: from `moves_of`.
        pull: λ.
        feedback: False to drop what rounding took away.
    """
    model = nn.ParameterList([torch.zeros(ELEMENTS, dtype=torch.float64)])

    def drop_residual(report: grawa_hvd.RoundReport) -> None:
        state = optimizer.state_dict()["grawa"]["state"]
        for residual in (tensors["residual"] for tensors in state.values() if not feedback):
            residual.zero_()

    optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), averaging="uniform", period=1, pull=pull, proximity=0.0,
        compression=grawa_hvd.Compression.fp16, on_round=drop_residual,
    )  # fmt: skip
    exact, result = torch.zeros_like(moves[0]), []
    for move in moves:
        exact = exact - move
        model[0].grad = move[hvd.rank()].clone()
        optimizer.step()
        center = exact.mean(dim=0)
        exact = exact + pull * (center - exact)
        (found,) = optimizer.center.values()
        result.append(float((found - center).norm() / move.norm(dim=1).mean()))
    return result


def measured(rounds: int) -> list[dict[str, Any]]:
    """A row for each curve."""
    return [
        {"case": case, "pull": pull, "feedback": feedback,
         "errors": errors(moves_of(case, rounds, hvd.size()), pull, feedback)}
        for case in CASES for pull in (1.0, 0.5) for feedback in (True, False)
    ]  # fmt: skip


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """One panel a case."""
    import matplotlib  # noqa: PLC0415  (an optional dependency)

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, panels = pyplot.subplots(1, len(CASES), figsize=(12, 4), sharey=True, layout="constrained")
    for panel, (case, title) in zip(panels, CASES.items(), strict=True):
        for row in (row for row in rows if row["case"] == case):
            panel.semilogy(
                range(2, len(row["errors"]) + 1), row["errors"][1:],  # the first round travels whole
                color="C0" if row["pull"] == 1 else "C1", linestyle="-" if row["feedback"] else ":",
                label=f"λ = {row['pull']:g}, {'with' if row['feedback'] else 'without'} feedback",
            )  # fmt: skip
        panel.set(title=title, xlabel="round")
        panel.axhline(2.0**-11, color="0.7", linewidth=1)
        panel.annotate("2⁻¹¹", (1, 2.0**-11), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.5")
    panels[0].set_ylabel("error of the centre / mean move of a worker")
    panels[0].legend(fontsize="small")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=32)
    parser.add_argument("--output", type=Path, default=RESULTS / "compression_error", help="without its suffix")
    options = parser.parse_args()
    hvd.init()
    rows = measured(options.rounds)
    if hvd.rank() == 0:
        about = {
            "workers": hvd.size(), "elements": ELEMENTS, "rounds": options.rounds, "dtype": "float64",
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        }  # fmt: skip
        options.output.with_suffix(".json").write_text(json.dumps({"about": about, "curves": rows}, indent=1) + "\n")
        draw(rows, options.output.with_suffix(".png"))
        for row in rows:
            print(f"{row['case']:15} pull {row['pull']:3g} feedback {row['feedback']!s:5} last {row['errors'][-1]:.2e}")


if __name__ == "__main__":
    main()

"""Whether the model was put elsewhere between steps, as by `model.load_state_dict`: the centre stays where it was."""

from __future__ import annotations

import warnings

from torch import Tensor

from grawa_hvd.caller import stacklevel

JUMP = 3.0  # times as far from the centre as at the round before


class Moved:
    """Notices that parameters were written to between steps and then were unusually far from the centre at the round.

    Scripts that clip weights, or swap averages of them in and out, write to them too and jump nowhere.
    """

    def __init__(self) -> None:
        self._told = False
        self.forget()

    def forget(self) -> None:
        """Know of no step and no round."""
        self._version: int | None = None
        self._written = self._was_written = False
        self._distance = float("inf")

    def step_begins(self, parameter: Tensor) -> None:
        """Look at the version of one parameter: averaging leaves it, and nobody else is to raise it between steps."""
        self._written = self._written or (self._version is not None and parameter._version != self._version)

    def step_ends(self, parameter: Tensor) -> None:
        """Remember that version."""
        self._version = parameter._version

    def at_round(self, distance: float) -> None:
        """Tell once if the round before found the worker elsewhere.

        Args:
            distance: ‖x − c‖ when it was pulled in the round before; NaN if it was not.
        """
        if self._was_written and distance > JUMP * self._distance > 0 and not self._told:
            self._told = True
            warnings.warn(
                f"at the last round this worker was {distance / self._distance:.0f} times as far from the centre as at "
                "the one before, and its parameters had been written to between steps. If the model was put elsewhere, "
                "as by model.load_state_dict, the centre and its momentum pull it back: call optimizer.recenter() on "
                "every rank after that",
                stacklevel=stacklevel(),
            )
        self._was_written, self._written, self._distance = self._written, False, distance

"""Lava's sigma-delta family, held at zero between samples and recording what it does."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.proc.sdn.models import PyDeltaModelFixed, PySigmaDeltaModelFixed, PySigmaModelFixed
from lava.proc.sdn.process import Delta, Sigma, SigmaDelta


class _Named:
    """Takes a name and the parameter ``tape``, for which Lava's constructors have no place."""

    proc_params: Any

    def __init__(self, *, name: str, tape: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.name = name
        self.proc_params["tape"] = tape


class HeldSigma(_Named, Sigma):
    """Lava's Sigma."""


class HeldDelta(_Named, Delta):
    """Lava's Delta."""


class HeldSigmaDelta(_Named, SigmaDelta):
    """Lava's SigmaDelta."""


class _Held:
    """One step of Lava's model (the class after it), or a hold: receive, forget, send zeros."""

    states: tuple[str, ...]
    a_in: Any
    s_out: Any
    time_step: int

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)  # type: ignore[call-arg]
        self.tape = proc_params["tape"]

    def run_spk(self) -> None:
        """One step: Lava's own, or a hold."""
        row = self.tape.timeline.row(self.time_step)
        if row >= 0:
            super().run_spk()  # type: ignore[misc]
            current, voltage = getattr(self, "sigma", None), getattr(self, "act", None)
            self.tape.record(row, self.message(), current, voltage)
        else:
            zeros = np.zeros_like(self.a_in.recv())
            for name in self.states:
                getattr(self, name)[:] = 0
            self.s_out.send(zeros)
        self.tape.reached[0] = self.time_step

    def message(self) -> Any:
        """What was sent in this step."""
        raise NotImplementedError


class _Encoding(_Held):
    """Keeps what Lava's delta encoder decided to send, before it is shifted to be a message."""

    states = ("sigma", "act", "residue", "error")
    state_exp: Any

    def delta_dynamics(self, act_data: Any) -> Any:
        """Lava's own."""
        self.change = super().delta_dynamics(act_data)  # type: ignore[misc]
        return self.change

    def message(self) -> Any:
        """What was sent in this step."""
        return np.right_shift(self.change, self.state_exp)


class HeldSigmaModel(_Held, PySigmaModelFixed):
    """Lava's fixed-point Sigma model, its arithmetic unmodified."""

    # Protocol, resources and tags are inherited; Lava's decorators refuse a subclass.
    implements_process = HeldSigma
    states = ("sigma",)

    def message(self) -> Any:
        """What was sent in this step."""
        return self.sigma


class HeldDeltaModel(_Encoding, PyDeltaModelFixed):
    """Lava's fixed-point Delta model, its arithmetic unmodified."""

    implements_process = HeldDelta


class HeldSigmaDeltaModel(_Encoding, PySigmaDeltaModelFixed):
    """Lava's fixed-point SigmaDelta model, its arithmetic unmodified."""

    implements_process = HeldSigmaDelta

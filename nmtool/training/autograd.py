"""torch functions of a neuron's step: spikes with a surrogate derivative, noisy voltages."""

from __future__ import annotations

from typing import Any

import torch

from nmtool.fixedpoint import DECAY_ONE
from nmtool.quantization import STATE_SCALE
from nmtool.training.surrogates import Derivative


class SurrogateSpike(torch.autograd.Function):
    """Spikes that are given, with the surrogate derivative at the voltage."""

    @staticmethod
    def forward(
        ctx: Any, voltage: torch.Tensor, fires: torch.Tensor, threshold: float, rho: Derivative
    ) -> torch.Tensor:
        """The spikes, as numbers of the voltage's kind."""
        ctx.save_for_backward(voltage)
        ctx.threshold, ctx.rho = threshold, rho
        return fires.to(voltage.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """The gradient of the spikes times the surrogate derivative."""
        (voltage,) = ctx.saved_tensors
        return gradient * ctx.rho(voltage - ctx.threshold, torch), None, None, None


class NoisyVoltage(torch.autograd.Function):
    r"""The voltage of CUBA neurons that are reset where it is above a threshold of its own a step.

    .. math:: v[t] = \mathrm{trunc}(k\, v[t-1] (1 - s[t-1]) / 4096) + u[t]

    in the chip's integers, as SLAYER's; backward :math:`g_u[t] = g_v[t] + k / 4096\; g_u[t+1]`: the
    reset has no gradient, as in SLAYER. The decay has the gradient of lava-dl's integrator,
    :math:`\sum_t g_u[t+1]\, v[t]`, which is that of the fraction kept, k / 4096.
    """

    @staticmethod
    def forward(
        ctx: Any, current: torch.Tensor, decay: torch.Tensor, levels: torch.Tensor
    ) -> torch.Tensor:
        """Voltage before the reset (real units), (samples, neurons, steps).

        ``decay`` is 4096 times the fraction lost, shape (1,); ``levels`` are the thresholds in chip
        units.
        """
        keep = DECAY_ONE - round(decay.item())
        ctx.keep = keep / DECAY_ONE
        drive = (current * STATE_SCALE).to(torch.int64)
        state = torch.zeros_like(drive[..., 0])
        voltage = torch.empty_like(drive)
        for t in range(drive.shape[-1]):
            state = torch.div(state * keep, DECAY_ONE, rounding_mode="trunc") + drive[..., t]
            voltage[..., t] = state
            state = torch.where(state > levels[..., t], 0, state)
        real = voltage.to(current.dtype) / STATE_SCALE
        ctx.save_for_backward(real)
        return real

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """The gradients of the current and of the decay."""
        (voltage,) = ctx.saved_tensors
        result = gradient.clone()
        for t in range(result.shape[-1] - 2, -1, -1):
            result[..., t] += ctx.keep * result[..., t + 1]
        decay = (result[..., 1:] * voltage[..., :-1]).sum().reshape(1)
        return result, decay, None

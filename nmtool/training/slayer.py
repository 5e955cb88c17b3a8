"""Networks of lava-dl's SLAYER parts, whose forward pass is the chip's integer arithmetic.

Weights are rounded to the chip's synapse format in every forward pass (straight through in the
backward pass), neurons run with the decays and thresholds that the registers will hold, and a
spike takes one step plus its delay. So the trained spikes are the deployed spikes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nmtool.backends.lava.compat import prepare_slayer
from nmtool.chip import ChipSpec
from nmtool.config import Noise, SlayerSurrogate, Surrogate
from nmtool.fixedpoint import ALIGN_BITS, DECAY_ONE
from nmtool.network import Network
from nmtool.operations import (
    Conv,
    Dense,
    Flatten,
    Operation,
    Scale,
    Shape,
    Sparse,
    SumPool,
    count_weighted,
)
from nmtool.quantization import (
    STATE_SCALE,
    QuantizedPopulation,
    choose_format,
    dequantize_weights,
    quantize,
    quantize_weights,
    quantized_neuron_value,
)
from nmtool.training.autograd import NoisyVoltage
from nmtool.training.learned import mean_is_free, rounded_mean
from nmtool.training.model import Model, Stage, States, Synapses
from nmtool.training.noise import Draw, noisy_thresholds
from nmtool.training.recipe import WEIGHTS_ONLY, Recipe
from nmtool.training.surrogates import derivative, spike


class SlayerNetwork(Model):
    """A Network of lava-dl's CUBA neurons, and its synapses for dense weights and convolutions.

    Populations of a loop run step by step, as in lava-dl's recurrent block: gradients go back
    through the spikes of the loop, not through the u and v of its neurons.

    Args:
        network: CUBA populations, one input of spikes.
        chip: its formats are those that the forward pass rounds to.
        surrogate: the surrogate derivative.
        noise: how neurons spike by chance in a forward pass with a draw.
        recipe: what is trained beside the weights.

    Raises:
        UnsupportedError: a network that cannot be trained (``nmtool.training.model.stages``), or
            not by this recipe.
        FitError: a parameter that the chip cannot hold.
        DependencyError: lava-dl or torch is missing.
    """

    def __init__(
        self,
        network: Network,
        chip: ChipSpec,
        surrogate: Surrogate,
        noise: Noise | None = None,
        recipe: Recipe = WEIGHTS_ONLY,
    ) -> None:
        super().__init__(network, chip, recipe)
        prepare_slayer()
        from lava.lib.dl import slayer
        from lava.lib.dl.slayer.neuron.dynamics import leaky_integrator

        self._shift: Callable[[torch.Tensor, int], torch.Tensor] = slayer.axon.delay
        self._axon: Any = slayer.axon.Delay()
        self._axon.init = True
        self._integrate: Callable[..., torch.Tensor] = leaky_integrator.dynamics
        self._chip = chip
        self._surrogate, self._noise = surrogate, noise
        quantized = quantize(network, chip)
        self._registers = quantized.populations
        self._rho = {
            name: derivative(surrogate, (p.threshold << ALIGN_BITS) / STATE_SCALE, noise)
            for name, p in self._registers.items()
        }
        self.neurons = torch.nn.ModuleList(
            _neuron(quantized.populations[name], surrogate) for name in network.populations
        )
        self.synapses = torch.nn.ModuleList()
        self._place: dict[str, int] = {}
        for name, projection in network.projections.items():
            for operation in projection.operations:
                if isinstance(operation, Dense | Conv):
                    self._place[name] = len(self.synapses)
                    self.synapses.append(_synapse(operation))
        self._bias = {
            name: torch.from_numpy(p.bias / STATE_SCALE)
            for name, p in quantized.populations.items()
        }
        self._fixed = {
            name: dequantize_weights(p.weight_mantissa, p.format)
            for name, p in quantized.projections.items()
            if name not in self.trained
        }

    def neuron(self, population: str) -> Any:
        """The neurons of a population."""
        return self.neurons[[*self.network.populations].index(population)]

    def rounded(self, projection: str) -> torch.Tensor:
        """Real weights rounded to the chip's format, with the gradient of the identity."""
        if projection in self._fixed:
            return torch.from_numpy(self._fixed[projection]).to(self._like)
        weight = self.weight(projection)
        real = weight.detach().cpu().numpy()
        format = choose_format(projection, real, self.network.weight_bits, self._chip)
        chip = torch.from_numpy(dequantize_weights(quantize_weights(real, format), format))
        return weight + (chip.to(weight) - weight).detach()

    @property
    def _like(self) -> torch.Tensor:
        """A tensor of the device and the kind of number that lava-dl's blocks compute with."""
        neuron: Any = self.neurons[0]
        state: torch.Tensor = neuron.current_state
        return state

    def spikes(
        self, x: torch.Tensor, populations: tuple[str, ...], draw: Draw | None
    ) -> dict[str, torch.Tensor]:
        """Spikes of the populations, shape (samples, neurons, steps)."""
        states = self.states(x, draw)
        return {name: states[name][0] for name in populations}

    def states(self, x: torch.Tensor, draw: Draw | None = None) -> dict[str, States]:
        """(spikes, current, voltage before the reset) of every population, step by step."""
        self.learned.clamp()
        masks = self.learned.masks(len(x))
        weight = {name: self.rounded(name) for name in self.network.projections}
        sent = dict.fromkeys(self.network.inputs, x)
        result: dict[str, States] = {}
        for stage in self.stages:
            drive = {
                name: self._drive(stage.incoming, name, sent, weight, x)
                for name in stage.populations
            }
            limit = self._limits(stage, draw, x.shape[2])
            if stage.within:
                found = self._loop(stage, drive, weight, limit)
            else:
                found = self._whole(stage.populations[0], drive, limit)
            found = {name: _dropped(states, masks.get(name)) for name, states in found.items()}
            result |= found
            sent |= {name: self._sent(name, states[0]) for name, states in found.items()}
        return {name: result[name] for name in self.network.populations}

    def _drive(
        self,
        synapses: Sequence[Synapses],
        target: str,
        sent: dict[str, torch.Tensor],
        weight: dict[str, torch.Tensor],
        like: torch.Tensor,
    ) -> torch.Tensor:
        """What arrives at a population, shape (samples, neurons, steps)."""
        size = (len(like), self.network.sizes[target], like.shape[2])
        total = torch.zeros(size, dtype=like.dtype, device=like.device)
        for s in synapses:
            if s.target == target:
                arriving = self._shift(sent[s.source], s.delay)
                total = total + self._chain(s, arriving, weight[s.name])
        return total

    def _chain(self, s: Synapses, spikes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What the operations of a projection make of spikes (samples, neurons, steps)."""
        shape, x = s.shape, spikes
        for operation in s.operations:
            x = self._operate(s.name, operation, x, shape, weight)
            shape = operation.output_shape(shape)
        return x if count_weighted(s.operations) else x * weight

    def _operate(
        self, name: str, operation: Operation, x: torch.Tensor, shape: Shape, weight: torch.Tensor
    ) -> torch.Tensor:
        samples, _, steps = x.shape
        if isinstance(operation, Scale):
            return x * weight
        if isinstance(operation, Sparse):
            matrix = torch.zeros(operation.size, dtype=x.dtype, device=x.device)
            ends = tuple(
                torch.from_numpy(end).to(x.device) for end in (operation.target, operation.source)
            )
            return torch.matmul(matrix.index_put(ends, weight), x)
        if isinstance(operation, Dense):
            return self._synaptic(name, weight.reshape(*weight.shape, 1, 1, 1), x)
        image = x.reshape(samples, *shape, steps)
        if isinstance(operation, Flatten):
            return image.permute(0, 3, 2, 1, 4).reshape(samples, -1, steps)
        image = image.permute(0, 3, 1, 2, 4)
        if isinstance(operation, Conv):
            image = self._synaptic(name, weight.permute(0, 3, 1, 2)[..., None], image)
        else:
            image = _pooled(operation, image, shape)
        return image.permute(0, 2, 3, 1, 4).reshape(samples, -1, steps)

    def _synaptic(self, name: str, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """lava-dl's synapse with these weights in place of its own."""
        synapse: Any = self.synapses[self._place[name]]
        synapse.pre_hook_fx = lambda _: weight
        found: torch.Tensor = synapse(x)
        return found

    def _limits(self, stage: Stage, draw: Draw | None, steps: int) -> dict[str, torch.Tensor]:
        """The thresholds that noise draws, in the chip's units; without noise, none."""
        if draw is None or self._noise is None:
            return {}
        names = [*self.network.populations]
        return {
            name: torch.from_numpy(
                noisy_thresholds(
                    self._noise,
                    draw.keys(names.index(name)),
                    self._registers[name].threshold,
                    (self._registers[name].size, steps),
                )
            ).to(self.device)
            for name in stage.populations
        }

    def _spike(self, name: str, voltage: torch.Tensor, limit: torch.Tensor | None) -> torch.Tensor:
        """Spikes with the surrogate derivative: lava-dl's, or by a surrogate or limits of ours."""
        neuron = self.neuron(name)
        at, above = neuron.threshold, neuron.threshold + neuron.threshold_eps
        if isinstance(self._surrogate, SlayerSurrogate):
            if limit is None:
                spikes: torch.Tensor = neuron.spike(voltage)
                return spikes
            at = above
        fires = voltage >= above if limit is None else voltage * STATE_SCALE > limit
        return spike(voltage, fires, at, self._rho[name])

    def _whole(
        self, name: str, drive: dict[str, torch.Tensor], limits: dict[str, torch.Tensor]
    ) -> dict[str, States]:
        """A population of which no spike comes back, all steps at once."""
        rest = self._like.new_zeros(drive[name].shape[:2])
        dynamics = self._apart if self.learned.recipe.of(name).apart else self._dynamics
        limit = limits.get(name)
        current, voltage = dynamics(name, drive[name], rest, rest, limit)
        return {name: (self._spike(name, voltage, limit), current, voltage)}

    def _offset(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """The bias of a population, shape (neurons, 1)."""
        return self._bias[name].to(like)[:, None]

    def _apart(
        self,
        name: str,
        drive: torch.Tensor,
        current: torch.Tensor,
        voltage: torch.Tensor,
        limit: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``_dynamics`` with learned decays, and the mean taken off the current."""
        neuron, learned = self.neuron(name), self.learned
        now = learned.quantized(name)
        u = self._integrate(drive, self._decay(name, "current_decay", now), current, neuron.s_scale)
        taken: Any = 0
        if name in learned.normalized and learned.training:
            count = learned.mean(name).numel()
            mean = u.reshape(len(u), -1, count, u.shape[2]).mean(dim=(0, 1, 3), dtype=torch.float64)
            exact = mean.detach().cpu().numpy()
            learned.observe(name, exact)
            rounded = rounded_mean(exact)
            now = learned.quantized(name, rounded)
            free = torch.from_numpy(mean_is_free(exact).astype(np.float64)).to(mean)
            taken = torch.from_numpy(rounded).to(mean) + free * (mean - mean.detach())
            taken = taken.to(u.dtype).repeat(u.shape[1] // count)[:, None]
            taken = taken - taken.detach()
        bias = torch.from_numpy(now.bias / STATE_SCALE).to(u)[:, None]
        decay = self._decay(name, "voltage_decay", now)
        return u, self._voltage(name, u + bias - taken, decay, voltage, limit)

    def _decay(self, name: str, key: str, now: QuantizedPopulation) -> torch.Tensor:
        """A decay as lava-dl's integrator takes it: 4096 times the fraction lost."""
        value = quantized_neuron_value(now.decay_u, now.decay_v, now.threshold)
        register = torch.tensor([getattr(value, key) * DECAY_ONE]).to(self._like)
        learned = self.learned.values.get(f"{name}:{key}")
        return register if learned is None else _Register.apply(learned, register)

    def _sent(self, name: str, spikes: torch.Tensor) -> torch.Tensor:
        """Spikes with the axonal delay of every neuron, if each has its own."""
        steps = self.learned.delay(name)
        if steps is None:
            return spikes
        delay = self.learned.values.get(f"{name}:delay")
        if delay is None:
            late = torch.from_numpy(steps).to(spikes)
        else:
            late = delay.to(spikes.dtype).repeat(len(steps) // delay.numel())
        moved: torch.Tensor = torch.func.functional_call(self._axon, {"delay": late}, (spikes,))
        return moved

    def _dynamics(
        self,
        name: str,
        drive: torch.Tensor,
        current: torch.Tensor,
        voltage: torch.Tensor,
        limit: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Current and voltage (before the reset), from the states of the step before.

        ``limit`` are the thresholds of every step that noise draws, from states of rest.
        """
        neuron = self.neuron(name)
        u = self._integrate(drive, neuron.current_decay, current, neuron.s_scale)
        offset = self._offset(name, u)
        return u, self._voltage(name, u + offset, neuron.voltage_decay, voltage, limit)

    def _voltage(
        self,
        name: str,
        drive: torch.Tensor,
        decay: torch.Tensor,
        voltage: torch.Tensor,
        limit: torch.Tensor | None,
    ) -> torch.Tensor:
        if limit is not None:
            found: torch.Tensor = NoisyVoltage.apply(drive, decay, limit)
            return found
        neuron = self.neuron(name)
        threshold = neuron.threshold + neuron.threshold_eps
        return self._integrate(drive, decay, voltage, neuron.s_scale, threshold)

    def _loop(
        self,
        stage: Stage,
        drive: dict[str, torch.Tensor],
        weight: dict[str, torch.Tensor],
        limit: dict[str, torch.Tensor],
    ) -> dict[str, States]:
        """Populations whose spikes come back, step by step."""
        rest = {name: torch.zeros_like(drive[name][..., 0]) for name in stage.populations}
        states = {name: (zero, zero) for name, zero in rest.items()}
        trace: dict[str, list[States]] = {name: [] for name in stage.populations}
        for t in range(next(iter(drive.values())).shape[2]):
            for name in stage.populations:
                arriving = drive[name][..., t : t + 1]
                for s in stage.within:
                    if s.target == name:
                        sent = rest[s.source][..., None]
                        spikes = trace[s.source][t - s.delay][0] if t >= s.delay else sent
                        arriving = arriving + self._chain(s, spikes, weight[s.name])
                current, voltage = self._dynamics(name, arriving, *states[name])
                now = limit[name][..., t : t + 1] if name in limit else None
                spikes = self._spike(name, voltage, now)
                trace[name].append((spikes, current, voltage))
                u, v = current[..., 0].detach(), voltage[..., 0].detach()
                states[name] = (u, v * (1 - spikes[..., 0].detach()))
        return {
            name: tuple(torch.cat(parts, dim=2) for parts in zip(*steps, strict=True))
            for name, steps in trace.items()
        }


class _Register(torch.autograd.Function):
    """A register, with the gradient of the fraction lost.

    lava-dl's integrator gives the derivative by the fraction that is kept, which has the other
    sign.
    """

    @staticmethod
    def forward(_ctx: Any, _decay: torch.Tensor, register: torch.Tensor) -> torch.Tensor:
        return register.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> Any:
        return -gradients[0], None


def _dropped(states: States, mask: torch.Tensor | None) -> States:
    """States whose spikes have gone through dropout."""
    if mask is None:
        return states
    spikes, current, voltage = states
    return spikes * mask.to(spikes)[..., None], current, voltage


def _neuron(population: QuantizedPopulation, surrogate: Surrogate) -> Any:
    """lava-dl's CUBA neurons with the registers of a population."""
    from lava.lib.dl import slayer

    value = quantized_neuron_value(population.decay_u, population.decay_v, population.threshold)
    return slayer.neuron.cuba.Neuron(
        value.threshold,
        value.current_decay,
        value.voltage_decay,
        **_gradient_parameters(surrogate),
    )


def _gradient_parameters(surrogate: Surrogate) -> dict[str, float]:
    """What lava-dl's neurons take, which they multiply by their own factors."""
    from lava.lib.dl.slayer.neuron import cuba

    if not isinstance(surrogate, SlayerSurrogate):
        return {}
    return {
        "tau_grad": surrogate.tau_grad * surrogate.tau_factor / cuba.TAU_RHO_MULT,
        "scale_grad": surrogate.scale_grad * surrogate.scale_factor / cuba.SCALE_RHO_MULT,
    }


def _synapse(operation: Dense | Conv) -> Any:
    """lava-dl's synapse for an operation; its own weights are never used."""
    from lava.lib.dl import slayer

    if isinstance(operation, Dense):
        targets, sources = operation.weight.shape
        synapse = slayer.synapse.Dense(int(sources), int(targets))
    else:
        out, *kernel, width = operation.weight.shape
        synapse = slayer.synapse.Conv(
            width * operation.groups,
            out,
            tuple(kernel),
            operation.stride,
            operation.padding,
            operation.dilation,
            operation.groups,
        )
    return synapse.requires_grad_(False)


def _pooled(pool: SumPool, image: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Sums over windows of (samples, channels, x, y, steps)."""
    out = pool.output_shape(shape)
    beyond = [
        max(0, (out[a] - 1) * pool.stride[a] + pool.kernel[a] - pool.padding[a] - shape[a])
        for a in (0, 1)
    ]
    px, py = pool.padding
    padded = F.pad(image, (0, 0, py, max(py, beyond[1]), px, max(px, beyond[0])))
    kernel, stride = (*pool.kernel, 1), (*pool.stride, 1)
    found = F.avg_pool3d(padded, kernel, stride, divisor_override=1)
    return found[:, :, : out[0], : out[1]]

"""Experiment files: what to train, on what data, and what must hold.

The schema of ``nmtool.experiment/v1``. Sections that a deployed program needs (data, encoding,
readout, checks) are kept with the network and the program under the same types.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from nmtool import yamlio
from nmtool.chip import BackendName, Duration, shipped
from nmtool.errors import ConfigError
from nmtool.yamlio import Fraction, Strict

MAX_LAYER = 1 << 16
"""Neurons of one layer."""
MAX_WEIGHTS = 1 << 26
"""Between all layers."""
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


Steps = Annotated[int, Field(ge=1, le=100_000)]
MaxRate = Annotated[float, Field(gt=0, le=1)]


class RateEncoding(Strict):
    """Evenly spaced spikes: ``max_rate`` spikes per step for the number 1."""

    kind: Literal["rate"]
    steps: Steps
    max_rate: MaxRate = 1.0


class RandomEncoding(Strict):
    """A seeded draw at every step, with probability ``max_rate`` for the number 1."""

    kind: Literal["random"]
    steps: Steps
    max_rate: MaxRate = 1.0
    seed: Seed = 0


class LatencyEncoding(Strict):
    """One spike, the earlier the larger the number; none for 0."""

    kind: Literal["latency"]
    steps: Steps


Encoding = Annotated[RateEncoding | RandomEncoding | LatencyEncoding, Field(discriminator="kind")]
"""How a number in [0, 1] becomes spikes over ``steps`` steps."""


class DeltaEncoding(Strict):
    """Send-on-delta: an on or off spike for every ``threshold`` that a channel moves.

    A frame is held for ``hold`` steps, in each of which a channel spikes at most once. The unit of
    ``threshold`` is the channel's standard deviation in the training samples.
    """

    kind: Literal["delta"]
    steps: Steps
    hold: Annotated[int, Field(ge=1, le=1000)] = 4
    threshold: Rate = 0.25


class Digits(Strict):
    """scikit-learn's handwritten digits, their seeded and stratified split, and their encoding."""

    name: Literal["digits"]
    encoding: Encoding
    test: Positive = 360
    validation: Positive = 180
    split_seed: Seed = 0

    @property
    def n_steps(self) -> int:
        """Steps of a sample."""
        return self.encoding.steps


Deviation = Annotated[float, Field(ge=0, le=10)]
FRAMES = 29
"""Of the longest utterance of the Japanese vowels."""


class JapaneseVowels(Strict):
    """Two vowels by nine speakers, to be told apart. Validation is a part of the training part.

    While a network trains, ``offset_noise`` and ``frame_noise`` (in standard deviations of the
    channel) are those of normal numbers that are added to every channel of an utterance as a whole,
    and of each of its frames, drawn anew in every epoch.
    """

    name: Literal["japanese_vowels"]
    encoding: DeltaEncoding
    offset_noise: Deviation = 0.0
    frame_noise: Deviation = 0.0
    validation: Positive = 45
    split_seed: Seed = 0

    @field_validator("encoding")
    @classmethod
    def _long_enough(cls, encoding: DeltaEncoding) -> DeltaEncoding:
        if encoding.steps < FRAMES * encoding.hold:
            raise ValueError(
                f"steps of at least {FRAMES * encoding.hold}, for the longest utterance, {FRAMES} "
                f"frames of {encoding.hold} steps (hold); found {encoding.steps}"
            )
        return encoding

    @property
    def n_steps(self) -> int:
        """Steps of a sample."""
        return self.encoding.steps


SampleCount = Annotated[int, Field(ge=4, le=1_000_000)]


class DelayedXor(Strict):
    """Two cues, a delay between them, and a go signal; the class is whether the cues differ.

    Each of the three lasts ``cue`` steps and is followed by ``delay`` steps. ``lines`` neurons
    carry each signal: with probability ``rate`` they spike at a step of it, with probability
    ``noise`` at any other.
    """

    name: Literal["delayed_xor"]
    cue: Annotated[int, Field(ge=1, le=10_000)] = 8
    delay: Annotated[int, Field(ge=0, le=10_000)] = 12
    lines: Annotated[int, Field(ge=1, le=1000)] = 8
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    noise: Fraction = 0.02
    train: SampleCount = 800
    validation: SampleCount = 200
    test: SampleCount = 400
    seed: Seed = 0

    @property
    def n_steps(self) -> int:
        """Steps of a sample."""
        return 3 * (self.cue + self.delay)


class MovingDigits(Strict):
    """scikit-learn's digits in three saccades before a camera that reports changes of brightness.

    A pixel of the ``size`` x ``size`` array sends an on or off event where its brightness (0 to 1)
    has moved by ``threshold`` since its last one. ``motion_seed`` draws the saccades.
    """

    name: Literal["moving_digits"]
    size: Literal[16, 32] = 16
    steps: Annotated[int, Field(ge=3, le=1000)] = 36
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.2
    motion_seed: Seed = 0
    test: Positive = 360
    validation: Positive = 180
    split_seed: Seed = 0

    @property
    def n_steps(self) -> int:
        """Steps of a sample."""
        return self.steps


class _Recorded(Strict):
    """A recorded data set, whose archives lie in ``folder``, or are fetched there by tonic.

    Events are counted into ``steps`` steps of ``step_ms``; those after them are left out, and
    several of one line in one step are one spike. Validation is taken from the training part.
    """

    folder: Annotated[str, Field(min_length=1)] | None = None
    download: bool = False
    steps: Steps
    step_ms: Rate
    validation: Positive
    split_seed: Seed = 0

    @property
    def n_steps(self) -> int:
        """Steps of a sample."""
        return self.steps


class NMnist(_Recorded):
    """N-MNIST: MNIST's digits before an event camera of 34 x 34 pixels."""

    name: Literal["nmnist"]
    steps: Steps = 300
    step_ms: Rate = 1.0
    validation: Positive = 6000


class DvsGesture(_Recorded):
    """DVS Gesture: eleven gestures before an event camera of 128 x 128 pixels.

    ``pool`` joins squares of so many pixels to one line.
    """

    name: Literal["dvs_gesture"]
    steps: Steps = 1450
    step_ms: Rate = 1.0
    validation: Positive = 110
    pool: Literal[1, 2, 4, 8] = 1


class Shd(_Recorded):
    """Spiking Heidelberg Digits: twenty spoken digits through a cochlea of 700 channels."""

    name: Literal["shd"]
    steps: Steps = 100
    step_ms: Rate = 14.0
    validation: Positive = 820


Recorded = NMnist | DvsGesture | Shd
Data = Annotated[
    Digits | JapaneseVowels | DelayedXor | MovingDigits | NMnist | DvsGesture | Shd,
    Field(discriminator="name"),
]
"""A data set, by its name: its split, its encoding or its length in steps."""


class NeuronConfig(Strict):
    """CUBA LIF neurons in SLAYER's scale: threshold, and the fraction lost per step."""

    kind: Literal["cuba"]
    threshold: Rate
    current_decay: Annotated[float, Field(ge=0, le=1)]
    voltage_decay: Annotated[float, Field(ge=0, le=1)]


LearnedParameter = Literal["current_decay", "voltage_decay", "delay"]
"""What neurons and axons can learn; delays are those of the axons."""

Count = Annotated[int, Field(ge=1, le=MAX_LAYER)]
Size = Count | Annotated[list[Count], Field(min_length=2, max_length=2)]
"""Of a window: one number for both axes, or [x, y]."""
Padding = Annotated[int, Field(ge=0, le=MAX_LAYER)]
LAYER_KINDS = ("dense", "conv", "pool", "recurrent")
_WINDOW = {"kernel": "conv", "dilation": "conv", "groups": "conv", "weight": "pool"}
_SHARED = ("stride", "padding")
_TRAINING = ("dropout", "batch_norm", "learn", "max_delay")


class LayerConfig(Strict):
    """One layer, fed by the one before; one of these says which kind it is.

    - ``dense``: so many neurons with weights from everything before;
    - ``conv``: so many channels of a convolution with ``kernel``, ``stride``, ``padding``,
      ``dilation``, ``groups``;
    - ``pool``: sums over windows of that size, a ``stride`` apart (the size of the window unless
      given). Without a name it has no neurons: the next layer's weights see the sums. With a name
      its sums, times the fixed ``weight``, drive neurons (SLAYER's pool block);
    - ``recurrent``: as ``dense``, and every neuron reaches every neuron of the layer.

    ``delay`` is that of its synapses in steps, those from the layer itself have none. ``bias`` is
    one real number for all neurons of the layer; ``neuron`` replaces the network's.

    In training, ``dropout`` silences a neuron for a whole sample with that probability,
    ``batch_norm`` takes the batch's mean current off, and ``learn`` names parameters of the neurons
    that are learned; axonal delays up to ``max_delay`` steps.
    """

    dense: Count | None = None
    conv: Count | None = None
    pool: Size | None = None
    recurrent: Count | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")] | None = None
    kernel: Size | None = None
    stride: Size | None = None
    padding: Padding | Annotated[list[Padding], Field(min_length=2, max_length=2)] = 0
    dilation: Size = 1
    groups: Count = 1
    weight: Rate | None = None
    delay: Annotated[int, Field(ge=0, le=1 << 16)] = 0
    bias: float | None = None
    neuron: NeuronConfig | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_norm: bool = False
    learn: list[LearnedParameter] = []
    max_delay: Annotated[int, Field(ge=1, le=1 << 16)] | None = None

    @property
    def kind(self) -> str:
        """Which of ``LAYER_KINDS`` it is."""
        return next(kind for kind in LAYER_KINDS if getattr(self, kind) is not None)

    @property
    def size(self) -> int:
        """Neurons of a dense or recurrent layer."""
        return self.dense or self.recurrent or 0

    @property
    def has_neurons(self) -> bool:
        """Whether it is a population: every layer but a pool without a name."""
        return self.pool is None or self.name is not None

    @property
    def _changed(self) -> set[str]:
        """The keys that have not their default."""
        fields = type(self).model_fields
        return {key for key, field in fields.items() if getattr(self, key) != field.default}

    @model_validator(mode="after")
    def _one_kind(self) -> LayerConfig:
        kinds = [kind for kind in LAYER_KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none"
            raise ValueError(f"one of {', '.join(LAYER_KINDS)}; found {found}")
        for key in self._changed & {*_WINDOW, *_SHARED}:
            allowed = _WINDOW.get(key, "conv or pool")
            if self.kind not in allowed:
                raise ValueError(f"{key} in a layer with {allowed}; found it with {self.kind}")
        if self.conv is not None and self.kernel is None:
            raise ValueError("a kernel for the convolution")
        if self.pool is not None and self.name is None:
            if neurons := self._changed & {"weight", "delay", "bias", "neuron", *_TRAINING}:
                raise ValueError(
                    f"a name for a pool with neurons; found {', '.join(sorted(neurons))} without"
                )
        elif self.name is None:
            raise ValueError("a name for the layer")
        if len(set(self.learn)) != len(self.learn):
            raise ValueError(f"learn with every parameter once; found {', '.join(self.learn)}")
        if self.max_delay is not None and "delay" not in self.learn:
            raise ValueError("max_delay in a layer that learns its delay; found it without")
        return self


def pair(size: int | list[int]) -> tuple[int, int]:
    """A size for both axes as (x, y)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Readout(Strict):
    """How output spikes become a class: by the ``count`` of spikes, or by the ``first_spike``.

    Class c has the output neurons ``c * neurons_per_class`` and the following. The class whose
    neurons together spike most wins, or the one of which a neuron spikes first; a tie goes to the
    lower class.
    """

    kind: Literal["count", "first_spike"] = "count"
    neurons_per_class: Annotated[int, Field(ge=1, le=MAX_LAYER)] = 1


class NetworkConfig(Strict):
    """The layers of a network, or ``entry``, a Python function that makes the network."""

    neuron: NeuronConfig | None = None
    layers: Annotated[list[LayerConfig], Field(min_length=1)] | None = None
    entry: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    readout: Readout = Readout()
    init_gain: Rate = 1.0

    @model_validator(mode="after")
    def _one_form(self) -> NetworkConfig:
        if (self.layers is None) == (self.entry is None):
            raise ValueError("either layers or entry, one of them")
        if self.layers is None:
            return self
        with_neurons = [layer for layer in self.layers if layer.has_neurons]
        names = [layer.name for layer in with_neurons]
        if len({*names, "input"}) != len(names) + 1:
            raise ValueError(f"layer names that differ and are not input; found {names}")
        sizes = [layer.size for layer in self.layers]
        own = sum((layer.recurrent or 0) ** 2 for layer in self.layers)
        if sum(a * b for a, b in pairwise([1, *sizes])) + own > MAX_WEIGHTS:
            raise ValueError(f"at most {MAX_WEIGHTS} weights between the layers")
        if self.neuron is None and any(layer.neuron is None for layer in with_neurons):
            raise ValueError("a neuron for the network, or one for each of its layers")
        return self


class SlayerSurrogate(Strict):
    r"""SLAYER's exponential, with lava-dl's rescaling written out.

    .. math::
        \tau = \text{tau\_grad} \cdot \text{tau\_factor} \cdot \vartheta, \qquad
        \rho(v) = \frac{\text{scale\_grad} \cdot \text{scale\_factor}}{2 \tau}
        e^{-|v - \vartheta| / \tau}

    Peak scale_grad scale_factor / (2 tau), area scale_grad scale_factor. lava-dl multiplies what
    its user gives by 100 and 0.1 (neuron/cuba.py); its defaults, both 1, are nearly flat. Sources:
    Shrestha and Orchard, NeurIPS 2018; 0.03 and 3 are those of lava-dl's N-MNIST tutorial.
    """

    kind: Literal["slayer"] = "slayer"
    tau_grad: Rate = 0.03
    scale_grad: Rate = 3.0
    tau_factor: Rate = 100.0
    scale_factor: Rate = 0.1


class FastSigmoidSurrogate(Strict):
    r"""SuperSpike's :math:`\rho(v) = (1 + \beta |v - \vartheta|)^{-2}`.

    Peak 1, area 2 / beta: a larger beta makes gradients smaller. Source: Zenke and Ganguli, Neural
    Computation 30, 2018; beta 10 is DECOLLE's (Kaiser, Mostafa and Neftci 2020).
    """

    kind: Literal["fast_sigmoid"]
    beta: Rate = 10.0


class SigmoidSurrogate(Strict):
    r"""The derivative of a sigmoid: :math:`\rho(v) = \beta\, s (1 - s)`.

    With :math:`s = 1 / (1 + e^{-\beta (v - \vartheta)})`. Peak beta / 4, area 1. Source: Zenke and
    Vogels, Neural Computation 33, 2021; beta 10 as Gygax and Zenke, Neural Computation 37, 2025.
    """

    kind: Literal["sigmoid"]
    beta: Rate = 10.0


class TriangleSurrogate(Strict):
    r"""Piecewise linear: :math:`\rho(v) = \gamma \max(0, 1 - |v - \vartheta| / w)`.

    Peak gamma, area gamma w. Source: Bellec et al., NeurIPS 2018, with gamma 0.3 and w the
    threshold, 1.
    """

    kind: Literal["triangle"]
    gamma: Rate = 0.3
    width: Rate = 1.0


class BoxSurrogate(Strict):
    r"""A rectangle: :math:`\rho(v) = 1 / a` where :math:`|v - \vartheta| < a / 2`, else 0.

    Peak 1 / a, area 1. Source: Wu et al., Frontiers in Neuroscience 12, 2018, with a = 1.
    """

    kind: Literal["box"]
    width: Rate = 1.0


class ArctanSurrogate(Strict):
    r"""The derivative of an arc tangent.

    :math:`\rho(v) = \frac{\alpha}{2} / (1 + (\frac{\pi}{2} \alpha (v - \vartheta))^2)`. Peak
    alpha / 2, area 1. Source: Fang et al., ICCV 2021, with alpha = 2.
    """

    kind: Literal["arctan"]
    alpha: Rate = 2.0


class StraightThroughSurrogate(Strict):
    r"""The straight-through estimator: :math:`\rho(v) = c`, whatever v is.

    Peak c; its area is infinite. Source: Bengio, Leonard and Courville 2013, arXiv:1308.3432, with
    c = 1.
    """

    kind: Literal["straight_through"]
    scale: Rate = 1.0


class EscapeSurrogate(Strict):
    r"""The derivative of the escape function of ``train.noise``, :math:`\rho(v) = dP / dv`.

    Its parameters are the noise's, its area is 1. Source: Gygax and Zenke, Neural Computation 37,
    2025.
    """

    kind: Literal["escape"]


Surrogate = Annotated[
    SlayerSurrogate
    | FastSigmoidSurrogate
    | SigmoidSurrogate
    | TriangleSurrogate
    | BoxSurrogate
    | ArctanSurrogate
    | StraightThroughSurrogate
    | EscapeSurrogate,
    Field(discriminator="kind"),
]
"""What stands for the derivative of a spike by the voltage v; v and the threshold are those of
SLAYER's scale, where weights of 1 are 64 on the chip."""


class SigmoidNoise(Strict):
    r"""Escape noise: :math:`P(\text{spike} | v) = 1 / (1 + e^{-\beta (v - \vartheta)})` a step.

    Source: Gerstner, Kistler, Naud and Paninski, Neuronal Dynamics, 2014, chapter 9; beta 10 as
    Gygax and Zenke, Neural Computation 37, 2025.
    """

    kind: Literal["sigmoid"]
    beta: Rate = 10.0


class ExponentialNoise(Strict):
    r"""Escape noise: :math:`P(\text{spike} | v) = \min(1, p_0 e^{(v - \vartheta) / \Delta u})`.

    Source: Gerstner et al., Neuronal Dynamics, 2014, chapter 9; p0 and du as the hidden neurons of
    Gygax and Zenke, Neural Computation 37, 2025.
    """

    kind: Literal["exponential"]
    p0: Annotated[float, Field(gt=0, le=1)] = 2 / 3
    du: Rate = 0.133


Noise = Annotated[SigmoidNoise | ExponentialNoise, Field(discriminator="kind")]
"""How neurons spike by chance while they are trained."""


class ConstantSchedule(Strict):
    """The learning rate as it is."""

    kind: Literal["constant"]


class CosineSchedule(Strict):
    """Falls as half a cosine to zero, from one update to the next, over all epochs."""

    kind: Literal["cosine"]


class StepSchedule(Strict):
    """Times ``factor`` after every so many epochs (torch's StepLR)."""

    kind: Literal["step"]
    every: Positive
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1


class ExponentialSchedule(Strict):
    """Times ``factor`` after every epoch (torch's ExponentialLR)."""

    kind: Literal["exponential"]
    factor: Annotated[float, Field(gt=0, lt=1)]


class PlateauSchedule(Strict):
    """Times ``factor`` after more than ``patience`` epochs without a better validation accuracy.

    torch's ReduceLROnPlateau, with its defaults.
    """

    kind: Literal["plateau"]
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Field(ge=0)] = 10


def _kind(value: object) -> object:
    """A schedule's name alone stands for the schedule with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


_Schedules = Annotated[
    ConstantSchedule | CosineSchedule | StepSchedule | ExponentialSchedule | PlateauSchedule,
    Field(discriminator="kind"),
]
Schedule = Annotated[
    _Schedules,
    BeforeValidator(
        _kind, json_schema_input_type=_Schedules | Literal["constant", "cosine", "plateau"]
    ),
]
"""How the learning rate changes: ``cosine``, or ``{kind: step, every: 5}``."""

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[list[Beta], Field(min_length=2, max_length=2)]
Penalty = Annotated[float, Field(ge=0, le=1e30)]


Single = Annotated[float, Field(gt=0, le=1e30)]
"""A number that torch takes as a float32, which ends at 3.4e38."""


class OptimizerBase(Strict):
    """What all optimizers have: the learning rate, its schedule, L2 decay of the weights.

    ``decay_lr`` and ``delay_lr`` are the rates of learned decays (fractions) and delays (steps);
    None: ``lr``. Neither decays nor delays have a weight decay.
    """

    lr: Single
    decay_lr: Single | None = None
    delay_lr: Single | None = None
    schedule: Schedule = ConstantSchedule(kind="constant")
    weight_decay: Penalty = 0.0


class Moments(OptimizerBase):
    """The decays of Adam's two moments, and what keeps its quotient finite; torch's defaults."""

    betas: Betas = [0.9, 0.999]
    eps: Single = 1e-8


class Adam(Moments):
    """Adam (Kingma and Ba 2015), with torch's defaults."""

    name: Literal["adam"]


class AdamW(Moments):
    """AdamW (Loshchilov and Hutter 2019), with torch's defaults: weights decay by themselves."""

    name: Literal["adamw"]
    weight_decay: Penalty = 0.01


class Adamax(Moments):
    """Adamax (Kingma and Ba 2015), with torch's defaults; DECOLLE uses betas [0, 0.95]."""

    name: Literal["adamax"]


class Sgd(OptimizerBase):
    """Stochastic gradient descent with momentum, as torch's SGD."""

    name: Literal["sgd"]
    momentum: Beta = 0.0
    nesterov: bool = False

    @field_validator("nesterov")
    @classmethod
    def _has_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and not info.data.get("momentum"):
            raise ValueError("true only with a momentum above 0")
        return nesterov


class RmsProp(OptimizerBase):
    """RMSprop (Tieleman and Hinton 2012), with torch's defaults."""

    name: Literal["rmsprop"]
    alpha: Beta = 0.99
    eps: Single = 1e-8
    momentum: Beta = 0.0


Optimizer = Annotated[Adam | AdamW | Adamax | Sgd | RmsProp, Field(discriminator="name")]
"""torch's optimizers by name."""


class CountCrossEntropy(Strict):
    """Cross-entropy of the class counts, ``softmax(scale * counts)``."""

    kind: Literal["count_cross_entropy"]
    scale: Rate = 0.5


class SpikeRate(Strict):
    """SLAYER's spike rate loss: squared distance of each neuron's rate to its target rate."""

    kind: Literal["spike_rate"]
    true_rate: Fraction = 0.2
    false_rate: Fraction = 0.03


TargetStep = Annotated[int, Field(ge=0, lt=100_000)]


class SpikeTime(Strict):
    """van Rossum distance to target spike trains, with an exponential filter of ``tau`` steps.

    The neurons of the right class are to spike at ``true_steps``, all others at ``false_steps``.
    """

    kind: Literal["spike_time"]
    true_steps: list[TargetStep]
    false_steps: list[TargetStep] = []
    tau: Rate = 5.0


class MaxOverTime(Strict):
    """Cross-entropy of the largest value that each class's filtered spikes reach.

    The filter is exponential with ``tau`` steps; the first ``burn_in`` steps do not count.
    """

    kind: Literal["max_over_time"]
    tau: Rate
    scale: Rate = 1.0
    burn_in: Annotated[int, Field(ge=0, lt=100_000)] = 0


class FirstSpike(Strict):
    """Cross-entropy of the latencies of each class's first spike, ``softmax(-latency / tau)``."""

    kind: Literal["first_spike"]
    tau: Rate


Loss = Annotated[
    CountCrossEntropy | SpikeRate | SpikeTime | MaxOverTime | FirstSpike,
    Field(discriminator="kind"),
]
"""What training makes small, from the spikes of the output population and the labels."""


def last_step(loss: Loss) -> int:
    """The last step that a loss names, 0 if it names none."""
    if isinstance(loss, SpikeTime):
        return max([*loss.true_steps, *loss.false_steps], default=0)
    return loss.burn_in if isinstance(loss, MaxOverTime) else 0


class RateBound(Strict):
    """A bound on the rate (spikes per step) of every neuron of some populations, of all by default.

    ``weight`` times the mean over samples and neurons of the squared distance beyond the bound.
    """

    rate: Fraction
    weight: Rate
    populations: Annotated[list[str], Field(min_length=1)] | None = None


class UpperRate(RateBound):
    """Neurons should not spike more often than ``rate``."""

    kind: Literal["upper_rate"]


class LowerRate(RateBound):
    """Neurons should not spike less often than ``rate``."""

    kind: Literal["lower_rate"]


class Sparsity(RateBound):
    """The mean rate of a whole population should not be above ``rate``: lava-dl's sparsity loss."""

    kind: Literal["sparsity"]


Regularizer = Annotated[UpperRate | LowerRate | Sparsity, Field(discriminator="kind")]
"""What is added to the loss, from the spikes of populations."""

Engine = Literal["event", "slayer"]
"""nmtool's compiled training by events, or lava-dl's own blocks."""


Device = Literal["cpu", "cuda"]
"""Where lava-dl's blocks train."""


class Train(Strict):
    """How to train: epochs, batch, optimizer, loss, bits of the weights in the forward pass.

    ``noise`` makes neurons spike by chance in training; the trained network is deterministic.
    ``weight_norm`` learns the norm of every neuron's weights apart from their direction. Both
    engines give the same spikes and gradients; ``slayer`` needs lava-dl. ``device`` is where it
    trains; the engine ``event`` is compiled for the CPU.
    """

    epochs: Positive
    batch: Positive
    optimizer: Optimizer
    loss: Loss
    regularizers: list[Regularizer] = []
    noise: Noise | None = None
    weight_bits: Literal[1, 2, 3, 4, 5, 6, 8] = 8
    jitter: Annotated[int, Field(ge=0, le=3)] = 0
    engine: Engine = "event"
    device: Device = "cpu"
    weight_norm: bool = False

    @field_validator("device")
    @classmethod
    def _has_kernels(cls, device: Device, info: ValidationInfo) -> Device:
        if device == "cuda" and info.data.get("engine") == "event":
            raise ValueError("cpu with engine event; cuda needs engine slayer")
        return device


Control = Literal["transfer", "simulation", "readout"]
BoardTime = Annotated[
    Duration,
    Field(gt=0),
    PlainSerializer(lambda seconds: f"{seconds!r}s", return_type=str, when_used="json"),
]


class RotateDrift(Strict):
    """Images turn: by 0 degrees at the first sample, by ``to`` degrees at the last one."""

    kind: Literal["rotate"]
    to: Annotated[float, Field(ge=-360, le=360)] = 60.0


class FadeDrift(Strict):
    """Channels lose amplitude: from 1 at the first sample to ``to`` at the last one.

    A channel is a pixel, or a coefficient about its mean. ``channels`` is the fraction of them that
    fade, drawn by the experiment's seed.
    """

    kind: Literal["fade"]
    to: Fraction = 0.2
    channels: Annotated[float, Field(gt=0, le=1)] = 1.0


def _drift(value: object) -> object:
    """``rotate:60`` stands for ``{kind: rotate, to: 60}``."""
    if not isinstance(value, str):
        return value
    kind, colon, to = value.partition(":")
    try:
        return {"kind": kind, "to": float(to)} if colon else {"kind": kind}
    except ValueError:
        return {"kind": kind, "to": to}


_Drifts = Annotated[RotateDrift | FadeDrift, Field(discriminator="kind")]
Drift = Annotated[_Drifts, BeforeValidator(_drift, json_schema_input_type=_Drifts | str)]
"""How the input of a stream changes, evenly from its first sample to its last one."""


class Stream(Strict):
    """How a deployed network learns from a stream of samples, one after the other.

    A sample of the ``split`` runs, its class is read, and then its label, if it is among the
    ``labelled`` fraction, teaches. None for ``samples`` is every sample of the split once; of more
    than there are some come again. ``pause`` silent steps follow each, its class is read from all
    of them, and states are kept; None: the target is reset before each.

    ``lr`` is the root mean square by which a sample that is taken for another class changes the
    weights of the neuron that it changes most (SLAYER's scale), in the last layer; ``hidden_lr`` in
    hidden ones, if ``layers`` is ``all``.

    A sample makes an update if its error, 1 less the likelihood of its class, reaches a threshold.
    ``updates`` is the fraction of labelled samples that are to make one; 1 is no gate. The
    threshold goes up or down by ``gain`` for every update too many or too few, not below ``floor``.
    The best weights are those of the best ``window`` of samples. ``control`` runs the frozen
    network on the same stream. Learning ends with the budget of ``finetune.writes``; no sample
    begins once that of ``finetune.board_time``, of which each of two passes has half, is used up.
    """

    drift: Drift | None = None
    split: Literal["train", "validation", "test"] = "test"
    samples: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    pause: Annotated[int, Field(ge=0, le=100_000)] | None = None
    layers: Literal["readout", "all"] = "readout"
    lr: Rate = 5e-3
    hidden_lr: Rate = 5e-4
    labelled: Fraction = 1.0
    updates: Annotated[float, Field(gt=0, le=1)] = 0.3
    gain: Rate = 0.02
    floor: Fraction = 0.1
    window: Positive = 50
    control: bool = True


RuleName = Literal["dcll", "readout", "bptt-injected"]
OWN_RULE = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"


def _rule(name: Any) -> Any:
    if name in get_args(RuleName) or (isinstance(name, str) and re.fullmatch(OWN_RULE, name)):
        return name
    close = difflib.get_close_matches(str(name), get_args(RuleName), n=1, cutoff=0.3)
    hint = f"; did you mean {close[0]}?" if close else ""
    allowed = "'dcll', 'readout', 'bptt-injected' or module:name of your own rule"
    raise ValueError(f"{allowed}{hint}")


RuleOrEntry = Annotated[
    str,
    BeforeValidator(_rule),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": [*get_args(RuleName)]},
                {"type": "string", "pattern": f"^{OWN_RULE}$"},
            ]
        }
    ),
]


class Finetune(Strict):
    """How to learn from measured spikes. A round is one pass over ``samples``.

    ``rule`` is ``dcll``, ``readout``, ``bptt-injected``, or ``module:name`` of a callable that
    makes one. The last layer learns alone for ``readout_rounds``, then every layer does, hidden
    ones at ``hidden_lr``; ``rates`` has populations with a rate of their own (0: they do not
    learn). ``scale`` is that of the local readouts' logits, which count spikes from step
    ``burn_in`` on. ``seeds`` fault seeds are run, counting up from the target's; on a target
    without invented faults seeds of the experiment. ``board_time``, which the target may be busy,
    and ``writes``, the weights that may be written, are for a whole study, or stream (None: without
    limit). ``stream`` is for ``nmtool finetune --stream``.

    ``probes`` are the populations whose spikes are measured (the outputs always are), ``probed``
    the fraction of the neurons of each hidden one that is, drawn from the experiment's seed; with
    ``probe_voltage`` their voltage is measured too. With ``diagnosis`` the target is looked over
    before it learns, with test weights that are taken back, and what cannot learn is left alone.
    """

    rule: RuleOrEntry = "dcll"
    rounds: Positive = 8
    readout_rounds: Annotated[int, Field(ge=0)] = 3
    batch: Positive = 32
    lr: Rate = 2e-3
    hidden_lr: Rate = 1e-4
    rates: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    scale: Rate = 0.1
    burn_in: Annotated[int, Field(ge=0)] = 0
    regularizers: list[Regularizer] = []
    samples: Literal["train"] = "train"
    controls: list[Control] = ["transfer", "simulation", "readout"]
    seeds: Positive = 1
    stream: Stream = Stream()
    board_time: BoardTime | None = None
    writes: Positive | None = None
    probes: Literal["all", "outputs"] | list[str] = "all"
    probed: Annotated[float, Field(gt=0, le=1)] = 1.0
    probe_voltage: bool = False
    diagnosis: bool = True


class Check(Strict):
    """A number that must hold: ``min`` and ``max`` of a metric on the targets named.

    A target of your own is named by its file, ``my-target.yaml``.
    """

    metric: Literal["accuracy"]
    min: Fraction | None = None
    max: Fraction | None = None
    on: Annotated[list[str], Field(min_length=1)]

    @model_validator(mode="after")
    def _bounded(self) -> Check:
        if self.min is None and self.max is None:
            raise ValueError("a min, a max, or both")
        return self

    @field_validator("on")
    @classmethod
    def _targets(cls, names: list[str]) -> list[str]:
        known = sorted({*shipped("targets"), *get_args(BackendName)})
        for name in names:
            if name not in known and not name.endswith((".yaml", ".yml")):
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(
                    f"{', '.join(known)}, or the .yaml file of a target; found {name!r}{hint}"
                )
        return names

    def concerns(self, target: str) -> bool:
        """Whether the check is to be held on a target of this name."""
        return target in self.on or any(Path(n).stem == target for n in self.on if "." in n)


class Experiment(Strict):
    """The schema of an experiment file."""

    schema_: Literal["nmtool.experiment/v1"] = Field(alias="schema")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}$")]
    seed: Seed = 0
    data: Data
    network: NetworkConfig
    train: Train
    surrogate: Annotated[Surrogate, Field(validate_default=True)] = None  # type: ignore[assignment]
    finetune: Finetune = Finetune()
    checks: list[Check] = []

    @field_validator("train")
    @classmethod
    def _steps_of_the_loss(cls, train: Train, info: ValidationInfo) -> Train:
        data = info.data.get("data")
        if data is not None and (last := last_step(train.loss)) >= data.n_steps:
            raise ValueError(
                f"a loss of steps 0 to {data.n_steps - 1}, those of a sample; found step {last} in "
                f"{train.loss.kind}"
            )
        return train

    @field_validator("surrogate", mode="before")
    @classmethod
    def _default_surrogate(cls, value: object, info: ValidationInfo) -> object:
        """SLAYER's, or with escape noise the derivative of the escape function."""
        train = info.data.get("train")
        noisy = train is not None and train.noise is not None
        if value is None:
            return {"kind": "escape" if noisy else "slayer"}
        return {"kind": "slayer", **value} if isinstance(value, dict) else value

    @field_validator("surrogate")
    @classmethod
    def _has_noise(cls, value: Surrogate, info: ValidationInfo) -> Surrogate:
        train = info.data.get("train")
        if value.kind == "escape" and train is not None and train.noise is None:
            raise ValueError("escape only with a train.noise whose derivative it is")
        return value

    @model_validator(mode="after")
    def _rates_of_what_is_learned(self) -> Experiment:
        learned = {key for layer in self.network.layers or [] for key in layer.learn}
        for rate, keys in (
            ("decay_lr", ("current_decay", "voltage_decay")),
            ("delay_lr", ("delay",)),
        ):
            if getattr(self.train.optimizer, rate) is not None and not learned & {*keys}:
                raise ValueError(
                    f"a layer that learns {' or '.join(keys)}, for its learning rate {rate}"
                )
        return self


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file; ``overrides`` are ``key.path=value`` strings.

    Raises:
        ConfigError: missing or wrong, every problem with file:line:column.
    """
    return yamlio.load(path, Experiment, overrides)


def resolved_json(config: Strict) -> str:
    """A config with every default written out, as JSON."""
    return config.model_dump_json(by_alias=True, indent=2)


def experiment_from_json(text: str, path: str) -> Experiment:
    """The experiment that ``resolved_json`` wrote.

    Raises:
        ConfigError: not such a file.
    """
    try:
        document = yamlio.Document(path, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a resolved experiment: {error}") from None
    try:
        return yamlio.validate(document, Experiment)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: not a resolved experiment, which `nmtool train` writes:\n{error}"
        ) from None

"""Experiment files: what to train, on what data, and what must hold.

The schema of ``nmtool.experiment/v1``. Sections that a deployed program needs (data, encoding,
readout, checks) are kept with the network and the program under the same types.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from nmtool import yamlio
from nmtool.chip import BackendName, shipped
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


Count = Annotated[int, Field(ge=1, le=MAX_LAYER)]
Size = Count | Annotated[list[Count], Field(min_length=2, max_length=2)]
"""Of a window: one number for both axes, or [x, y]."""
Padding = Annotated[int, Field(ge=0, le=MAX_LAYER)]
LAYER_KINDS = ("dense", "conv", "pool", "recurrent")
_WINDOW = {"kernel": "conv", "dilation": "conv", "groups": "conv", "weight": "pool"}
_SHARED = ("stride", "padding")


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
            if neurons := self._changed & {"weight", "delay", "bias", "neuron"}:
                raise ValueError(
                    f"a name for a pool with neurons; found {', '.join(sorted(neurons))} without"
                )
        elif self.name is None:
            raise ValueError("a name for the layer")
        return self


def pair(size: int | list[int]) -> tuple[int, int]:
    """A size for both axes as (x, y)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class Readout(Strict):
    """How output spikes become a class: the sum of the spike counts of its neurons, then argmax.

    Class c has the output neurons ``c * neurons_per_class`` and the following; a tie goes to the
    lower class.
    """

    kind: Literal["count"] = "count"
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


class Surrogate(Strict):
    """SLAYER's surrogate derivative; see lava-dl: tau_grad its width, scale_grad its height."""

    kind: Literal["slayer"] = "slayer"
    tau_grad: Rate = 0.03
    scale_grad: Rate = 3.0


class Optimizer(Strict):
    """Adam with a learning rate; ``schedule: cosine`` lets it fall to zero over the epochs."""

    name: Literal["adam"] = "adam"
    lr: Rate
    schedule: Literal["constant", "cosine"] = "constant"


class CountCrossEntropy(Strict):
    """Cross-entropy of the class counts, ``softmax(scale * counts)``."""

    kind: Literal["count_cross_entropy"]
    scale: Rate = 0.5


class SpikeRate(Strict):
    """SLAYER's spike rate loss: squared distance of each neuron's rate to its target rate."""

    kind: Literal["spike_rate"]
    true_rate: Fraction = 0.2
    false_rate: Fraction = 0.03


Engine = Literal["event", "slayer"]
"""nmtool's compiled training by events, or lava-dl's own blocks."""


class Train(Strict):
    """How to train: epochs, batch, optimizer, loss, bits of the weights in the forward pass.

    Both engines give the same spikes and gradients; ``slayer`` needs lava-dl.
    """

    epochs: Positive
    batch: Positive
    optimizer: Optimizer
    loss: Annotated[CountCrossEntropy | SpikeRate, Field(discriminator="kind")]
    weight_bits: Literal[1, 2, 3, 4, 5, 6, 8] = 8
    jitter: Annotated[int, Field(ge=0, le=3)] = 0
    engine: Engine = "event"


Control = Literal["transfer", "simulation", "readout"]


class Finetune(Strict):
    """How to learn from measured spikes. A round is one pass over ``samples``.

    The last layer learns alone for ``readout_rounds``, then every layer does, hidden ones at
    ``hidden_lr``. ``scale`` is that of the local readouts' logits. ``seeds`` fault seeds are run,
    counting up from the target's.
    """

    rule: Literal["dcll"] = "dcll"
    rounds: Positive = 8
    readout_rounds: Annotated[int, Field(ge=0)] = 3
    batch: Positive = 32
    lr: Rate = 2e-3
    hidden_lr: Rate = 1e-4
    scale: Rate = 0.1
    samples: Literal["train"] = "train"
    controls: list[Control] = ["transfer", "simulation", "readout"]
    seeds: Positive = 1


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
    surrogate: Surrogate = Surrogate()
    train: Train
    finetune: Finetune = Finetune()
    checks: list[Check] = []


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
        return Experiment.model_validate_json(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not a resolved experiment: {error}") from None

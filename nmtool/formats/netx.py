"""netx files (.net), lava-dl's HDF5 exchange format: read to the chip's integers.

The meaning is that of ``lava.lib.dl.netx.hdf5`` (lava-dl 0.6.0), which builds Lava processes from
them: populations are called ``layer0``, ``layer1``, ... as the layers are numbered, shapes are
(x, y, channel), ``decay_u = iDecay - 1``, the bias exponent is 6, and the delays of a dense layer
belong to the synapses into it. Layers that netx cannot build (pool, average) are read as SLAYER
runs them. What is read in another way than netx would is noted in ``metadata["notes"]``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nmtool.chip import ChipSpec, SignMode, SynapseFormat
from nmtool.config import Readout
from nmtool.errors import ArtifactError, ConfigError, NmtoolError, UnsupportedError
from nmtool.fixedpoint import DECAY_ONE, IntArray
from nmtool.formats.container import MAX_BYTES, is_container, read_container
from nmtool.formats.hdf5 import check_dataset
from nmtool.network import Input, PeriodicReset
from nmtool.operations import (
    Chain,
    Conv,
    Dense,
    Flatten,
    Pair,
    Scale,
    Shape,
    SumPool,
    chain_shape,
    with_weight,
)
from nmtool.quantization import (
    WEIGHT_SCALE,
    ParameterError,
    QuantizedNetwork,
    QuantizedPopulation,
    QuantizedProjection,
    choose_format,
    exact_exponents,
    quantize_weights,
    weight_error,
)

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
BIAS_EXPONENT = 6
WORD = 1 << 31
MAX_NEURONS = 1 << 27
"""More neurons in one layer than this are refused before anything is allocated."""

NEVER = 1 << 17
"""netx's threshold for neurons that never spike: one more than the register holds."""

_SPIKING = ("LOIHI", "CUBA")
_LATER = {
    "convT": "transposed convolution",
    "unpool": "unpooling",
    "concat": "concatenation",
    "dense_comp": "resonate-and-fire neurons with complex weights",
}


@dataclass(frozen=True)
class NetxOptions:
    """How a file is read, with netx's own meaning.

    ``num_layers`` reads only the first layers; of these ``skip_layers`` are left out, so that the
    input takes their place; ``input_shape`` (x, y, channel) is for files that do not say it. With
    ``reset_interval`` the k-th layer that is read is reset at the steps t with
    ``t % reset_interval == (k + reset_offset) % reset_interval``, the first step being 0.
    ``spike_exponent`` scales the messages of sigma-delta neurons.
    """

    num_layers: int | None = None
    skip_layers: int = 0
    input_shape: Shape | None = None
    reset_interval: int | None = None
    reset_offset: int = 0
    spike_exponent: int = 6


def netx_options(**options: Any) -> NetxOptions:
    """Options by name, checked.

    Raises:
        ConfigError: an unknown option, or a value that it cannot have.
    """
    known = {f.name: f for f in fields(NetxOptions)}
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"netx: found the option {name}, allowed {', '.join(known)}")
        if value is None:
            continue
        if name == "input_shape":
            if not (isinstance(value, Sequence) and value and all(_whole(n, 1) for n in value)):
                raise ConfigError(
                    f"netx {name}: found {value!r}, allowed whole numbers from 1: (x, y, channel)"
                )
        elif not _whole(value, lowest := _LOWEST.get(name, 0)):
            raise ConfigError(f"netx {name}: found {value!r}, allowed whole numbers from {lowest}")
    if options.get("reset_offset") and options.get("reset_interval") is None:
        raise ConfigError(
            f"netx reset_offset: found {options['reset_offset']} without reset_interval, which it "
            "shifts; give reset_interval"
        )
    return NetxOptions(**options)


_LOWEST = {"num_layers": 1, "reset_interval": 1, "reset_offset": -(1 << 31)}


def _whole(value: Any, lowest: int) -> bool:
    return isinstance(value, int | np.integer) and int(value) >= lowest


def is_netx(path: Path) -> bool:
    """Whether a file is an HDF5 file that does not begin with nmtool's own block."""
    try:
        with path.open("rb") as file:
            return file.read(len(HDF5_MAGIC)) == HDF5_MAGIC
    except OSError:
        return False


def load_netx(
    path: str | Path, chip: ChipSpec, options: NetxOptions | None = None
) -> QuantizedNetwork:
    """Read a netx file.

    Raises:
        ArtifactError: missing, damaged, or not a netx file.
        ConfigError: options that do not fit the file.
        UnsupportedError: a layer or neuron that nmtool does not have.
        FitError: a value that the chip cannot hold.
    """
    path = Path(path)
    options = options or NetxOptions()
    _refuse_own_file(path)
    try:
        with h5py.File(io.BytesIO(_bytes(path)), "r") as file:
            reader = _Reader(path.stem, chip, options)
            for index, layer in _layers(file, options):
                _read(reader, index, layer)
            return reader.network()
    except NmtoolError as error:
        raise type(error)(f"{path}: {error}") from None
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: not a netx file, or damaged ({reason})") from None


_DAMAGE = (
    *(OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError),
    *(ArithmeticError, MemoryError),
)


def _read(reader: _Reader, index: int, layer: _Layer) -> None:
    """Read a layer; whatever is wrong with it is said of this layer."""
    try:
        reader.read(index, layer)
    except NmtoolError:
        raise
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{layer.name}: not a layer of netx, or damaged ({reason})") from None


_TAKEN_BY = {
    "network": "a network: `nmtool compile` takes it, `nmtool export --format netx` makes it one",
    "quantized": (
        "a quantised network: `nmtool compile` takes it, `nmtool export --format netx` makes it one"
    ),
    "program": "a program: `nmtool deploy` takes it, `nmtool export --format netx` makes it one",
    "recording": "a recording: `nmtool compare` takes it",
}


def _refuse_own_file(path: Path) -> None:
    """Say of nmtool's own files what they are and which command takes them."""
    if not is_container(path):
        return
    schema = read_container(path).schema
    kind = schema.removeprefix("nmtool.").partition("/")[0]
    raise ArtifactError(
        f"{path}: found nmtool's own file of {_TAKEN_BY.get(kind, schema)}; allowed a netx file"
    )


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ArtifactError("found a folder, allowed a netx file")
    if not path.is_file():
        raise ArtifactError("no such file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ArtifactError(f"found {size} bytes, allowed {MAX_BYTES}")
    content = path.read_bytes()
    if not content.startswith(HDF5_MAGIC):
        raise ArtifactError("found no HDF5 file, allowed a netx file")
    return content


@dataclass(frozen=True)
class _Layer:
    """One group of the file; its scalars, arrays and texts by name."""

    name: str
    group: Any

    def __contains__(self, key: str) -> bool:
        return key in self.group

    def _dataset(self, key: str, allowed: str) -> Any:
        if key not in self.group:
            raise ArtifactError(
                f"{self.name}: found no {key}, allowed a layer that has it ({allowed}); the file "
                f"has {', '.join(self.group) or 'nothing'} there"
            )
        node = self.group[key]
        if not isinstance(node, h5py.Dataset):
            raise ArtifactError(f"{self.name}.{key}: found a group, allowed {allowed}")
        check_dataset(f"{self.name}.{key}", node)
        return node

    def array(self, key: str) -> Any:
        """An array or number as it is stored."""
        node = self._dataset(key, "numbers")
        if node.nbytes > MAX_BYTES:
            raise ArtifactError(f"{self.name}.{key}: found {node.nbytes} bytes")
        if node.dtype.kind not in "biuf":
            raise ArtifactError(f"{self.name}.{key}: found the type {node.dtype}, allowed numbers")
        return np.asarray(node[()])

    def whole(self, key: str) -> IntArray:
        """An array of whole numbers; fractions are dropped, as netx drops them."""
        values = self.array(key)
        if not np.all(np.abs(values) < WORD):
            raise ArtifactError(f"{self.name}.{key}: found a value that is no number of 32 bits")
        return np.asarray(values).astype(np.int64)

    def one(self, key: str) -> int:
        """A number that is the same for all neurons."""
        values = np.unique(self.whole(key))
        if values.size != 1:
            raise UnsupportedError(
                f"{self.name}.{key}: found {values.size} different values, allowed one for all "
                "neurons of a population; split the layer"
            )
        return int(values[0])

    def text(self, key: str) -> str:
        """A word, stored as bytes or as an array of one."""
        words = np.asarray(self._dataset(key, "a word")[()]).ravel()
        if not words.size:
            raise ArtifactError(f"{self.name}.{key}: found nothing, allowed a word")
        value = words[0]
        return value.decode("ascii") if isinstance(value, bytes) else str(value)

    def pair(self, key: str) -> Pair:
        """A number or (y, x), as (x, y)."""
        values = np.atleast_1d(self.whole(key)).ravel()
        if values.size == 1:
            return int(values[0]), int(values[0])
        if values.size != 2:
            raise ArtifactError(f"{self.name}.{key}: found {values.size} values, allowed 1 or 2")
        return int(values[1]), int(values[0])

    @property
    def kind(self) -> str:
        """What the layer is."""
        return self.text("type")

    @property
    def shape(self) -> Shape:
        """(x, y, channel), or one axis."""
        found = tuple(int(n) for n in self.whole("shape").ravel()[::-1])
        if not found or min(found) < 1 or math.prod(found) > MAX_NEURONS:
            raise ArtifactError(
                f"{self.name}.shape: found {found}, allowed sizes from 1, up to {MAX_NEURONS} "
                "neurons in all"
            )
        return found

    @property
    def neuron(self) -> _Layer | None:
        """The group of its neuron."""
        if "neuron" not in self:
            return None
        if not isinstance(self.group["neuron"], h5py.Group):
            raise ArtifactError(f"{self.name}.neuron: found an array, allowed a group")
        return _Layer(f"{self.name}.neuron", self.group["neuron"])


def _layers(file: Any, options: NetxOptions) -> Iterator[tuple[int, _Layer]]:
    if "layer" not in file or not isinstance(file["layer"], h5py.Group) or not len(file["layer"]):
        raise ArtifactError("found no layers, allowed a netx file (a group `layer`)")
    group = file["layer"]
    count = len(group) if options.num_layers is None else min(options.num_layers, len(group))
    if not 0 <= options.skip_layers < count:
        raise ConfigError(
            f"skip_layers: found {options.skip_layers}, allowed 0 to {count - 1} of {count} layers"
        )
    for index in range(count):
        if str(index) not in group:
            raise ArtifactError(f"found no layer {index}, allowed layers numbered from 0")
        if not isinstance(group[str(index)], h5py.Group):
            raise ArtifactError(f"layer{index}: found an array, allowed a group")
        yield index, _Layer(f"layer{index}", group[str(index)])


@dataclass
class _Reader:
    """Builds a network layer by layer; ``source`` is the one that feeds the next."""

    name: str
    chip: ChipSpec
    options: NetxOptions
    inputs: dict[str, Input] = field(default_factory=dict)
    populations: dict[str, QuantizedPopulation] = field(default_factory=dict)
    projections: dict[str, QuantizedProjection] = field(default_factory=dict)
    errors: list[ParameterError] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    readout: Readout | None = None
    source: str | None = None
    outside: Shape | None = None
    outside_graded: bool = False
    flatten: bool = False

    def read(self, index: int, layer: _Layer) -> None:
        """Add one layer."""
        kind = layer.kind
        if kind in _LATER:
            raise UnsupportedError(
                f"{layer.name}: found the type {kind} ({_LATER[kind]}), which nmtool does not have"
            )
        readers = {
            "input": self._input,
            "flatten": self._flatten,
            "conv": self._conv,
            "pool": self._pool,
            "dense": self._dense,
            "dense_rec": self._dense,
            "average": self._average,
        }
        if kind not in readers:
            raise UnsupportedError(
                f"{layer.name}: found the type {kind!r}, allowed {', '.join(readers)}"
            )
        if self.readout is not None:
            raise UnsupportedError(f"{layer.name}: found a layer after the average")
        if index < self.options.skip_layers:
            self._skip(layer)
        else:
            readers[kind](layer)

    def _skip(self, layer: _Layer) -> None:
        if layer.kind in ("input", "conv", "pool", "dense", "dense_rec"):
            self.outside = layer.shape if "shape" in layer else None
            neuron = layer.neuron
            self.outside_graded = neuron is not None and neuron.text("type") == "SDNN"

    def _input(self, layer: _Layer) -> None:
        neuron = layer.neuron
        if neuron is None:
            self.outside = layer.shape if "shape" in layer else None
            return
        self._check_input_shape(layer.shape)
        spiking = neuron.text("type") in _SPIKING
        self._add(layer, layer.shape, neuron, is_input=True)
        kind = "bias" if spiking else "graded"
        self.inputs["input"] = Input(layer.shape, kind, drives=layer.name)  # type: ignore[arg-type]
        transform = {key: layer.one(key) for key in ("weight", "bias") if key in layer}
        self.metadata["input_transform"] = {"weight": 64, "bias": 0, **transform}

    def _flatten(self, layer: _Layer) -> None:
        # netx leaves the order as it is where no layer stands before the flatten.
        self.flatten = self.source is not None

    def _conv(self, layer: _Layer) -> None:
        weight = layer.whole("weight")
        if weight.ndim not in (4, 5):
            raise ArtifactError(f"{layer.name}.weight: found {weight.ndim} axes, allowed 4 or 5")
        conv = Conv(
            weight.reshape(weight.shape[:4]).transpose(0, 3, 2, 1),
            layer.pair("stride"),
            layer.pair("padding"),
            layer.pair("dilation"),
            layer.one("groups"),
        )
        self._connect(layer, (conv,), self._image(layer))

    def _pool(self, layer: _Layer) -> None:
        shape = self._image(layer)
        weight = layer.whole("weight")
        kernel, stride, padding = (layer.pair(k) for k in ("kernelSize", "stride", "padding"))
        dilation = layer.pair("dilation") if "dilation" in layer else (1, 1)
        values = np.unique(weight)
        if values.size == 1 and dilation == (1, 1):
            pool = SumPool(kernel, stride, padding)
            if layer.shape != chain_shape((pool,), shape):
                pool = replace(pool, overhang=True)
            self._warn_of_mixed_channels(layer, pool, shape)
            self._connect(layer, (pool, Scale(values)), shape)
            return
        window = weight.reshape(kernel[::-1]).transpose()[None, :, :, None]
        weights = np.repeat(window, shape[2], axis=0)
        self._connect(layer, (Conv(weights, stride, padding, dilation, shape[2]),), shape)

    def _warn_of_mixed_channels(self, layer: _Layer, pool: SumPool, shape: Shape) -> None:
        """SLAYER's pool puts channels and rows on one axis, and its windows may cross channels."""
        rows, kernel = shape[1], pool.kernel[1]
        if pool.stride != pool.kernel or any(pool.padding) or (rows + rows % kernel) % kernel:
            self.notes.append(
                f"{layer.name}: every channel is pooled alone; SLAYER's windows cross from one "
                "channel to the next where the rows are no multiple of the kernel"
            )

    def _dense(self, layer: _Layer) -> None:
        n_target = int(np.prod(layer.shape))
        weight = layer.whole("weight").reshape(n_target, -1)
        shape = self._source_shape((weight.shape[1],))
        wide = [n for n in shape if n != 1]
        if len(wide) > 1 and not self.flatten:
            raise UnsupportedError(
                f"{layer.name}: found a dense layer behind the shape {shape}, allowed a flatten "
                "between them"
            )
        before: Chain = (Flatten(),) if self.flatten and len(wide) > 1 else ()
        delay = self._delay(layer, weight) if "delay" in layer else 0
        self._connect(layer, (*before, Dense(weight)), shape, delay, (n_target,))
        self.flatten = False
        if layer.kind == "dense_rec":
            recurrent = layer.whole("weight_rec").reshape(n_target, n_target)
            self._project(f"{layer.name}_rec", layer.name, layer.name, (Dense(recurrent),), 0)
            if np.ndim(delay) or delay:
                self.notes.append(
                    f"{layer.name}: its delays are those of the forward synapses; netx gives them "
                    "to the recurrent ones as well"
                )

    def _average(self, layer: _Layer) -> None:
        groups = int(np.prod(layer.shape)) if "shape" in layer else 1
        size = self.populations[self.source].size if self.source in self.populations else 0
        if not size or size % groups:
            raise ArtifactError(
                f"{layer.name}: found an average of {size} neurons to {groups} outputs, allowed a "
                "number of outputs that divides them"
            )
        self.readout = Readout(kind="count", neurons_per_class=size // groups)

    def _image(self, layer: _Layer) -> Shape:
        shape = self._source_shape(None)
        if len(shape) != 3:
            raise ConfigError(
                f"{layer.name}: found an input of shape {shape}, allowed (x, y, channel); give "
                "input_shape"
            )
        return shape

    def _check_input_shape(self, own: Shape | None) -> None:
        """Refuse an ``input_shape`` other than the shape that the file says."""
        given = self.options.input_shape
        if given is None or own is None or tuple(given) == own:
            return
        if len(own) > 1 or math.prod(given) != own[0]:
            raise ConfigError(
                f"input_shape: found {tuple(given)}, allowed {own} as the file says; leave it out"
            )

    def _source_shape(self, alone: Shape | None) -> Shape:
        """The shape of what feeds the next layer; makes the input if nothing does yet."""
        if self.source is None:
            self._check_input_shape(alone)
            self._check_input_shape(self.outside)
            shape = alone or self.options.input_shape or self.outside
            if shape is None:
                raise ConfigError("found no shape of the input, give input_shape (x, y, channel)")
            kind = "graded" if self.outside_graded else "spikes"
            self.inputs["input"] = Input(tuple(shape), kind)  # type: ignore[arg-type]
            self.source = "input"
        if self.source in self.inputs:
            return self.inputs[self.source].shape
        return self.populations[self.source].shape

    def _connect(
        self,
        layer: _Layer,
        operations: Chain,
        shape: Shape,
        delay: Any = 0,
        target: Shape | None = None,
    ) -> None:
        """A population behind a chain of operations from the present source."""
        assert self.source is not None
        target = target or layer.shape
        try:
            made = chain_shape(operations, shape)
        except ConfigError as error:
            raise ArtifactError(f"{layer.name}: {error}") from None
        if made != target:
            raise ArtifactError(
                f"{layer.name}: found the shape {target}, its operations make {made}"
            )
        before = self.source
        self._add(layer, target, layer.neuron)
        self._project(layer.name, before, layer.name, operations, delay)

    def _project(self, name: str, source: str, target: str, operations: Chain, delay: Any) -> None:
        wanted = next(op.weight for op in operations if not isinstance(op, Flatten | SumPool))
        real = wanted / WEIGHT_SCALE
        format = _exact_format(name, wanted, self.chip)
        mantissa = quantize_weights(real, format)
        shape = self.inputs[source].shape if source in self.inputs else None
        shape = shape or self.populations[source].shape
        exact = with_weight(operations, real)
        error = weight_error(f"{name}.weight", exact, shape, mantissa, format)
        self.errors.append(error)
        if error.max_error:
            self.notes.append(
                f"{name}: weights of {wanted.min()} to {wanted.max()} have no exact form in "
                f"{format}; they are rounded, by up to {error.max_error * WEIGHT_SCALE:g}"
            )
        if wanted.size and (wanted.min() < -256 or wanted.max() > 255):
            self.notes.append(f"{name}: weights beyond 8 bits; netx clips them, nmtool does not")
        self.projections[name] = QuantizedProjection(
            source, target, with_weight(operations, mantissa), format, delay
        )

    def _delay(self, layer: _Layer, weight: IntArray) -> Any:
        """Delays of the synapses into a dense layer, as netx spreads them over its weights."""
        delay = layer.whole("delay")
        limit = self.chip.delay_max
        if delay.size and delay.max() > limit:
            self.notes.append(
                f"{layer.name}: delays up to {delay.max()} steps become {limit}, as netx does"
            )
            delay = np.minimum(delay, limit)
        if delay.size and delay.min() == delay.max():
            return int(delay.max())
        if delay.ndim == 1 and delay.size == weight.shape[0]:
            delay = delay[:, None]
        elif delay.ndim == 1 and delay.size != weight.shape[1]:
            raise ArtifactError(
                f"{layer.name}.delay: found {delay.size} delays, allowed one a neuron of the layer "
                f"({weight.shape[0]}) or of its source ({weight.shape[1]})"
            )
        return np.array(np.broadcast_to(delay, weight.shape))

    def _add(
        self, layer: _Layer, shape: Shape, neuron: _Layer | None, is_input: bool = False
    ) -> None:
        """Add the population of a layer."""
        kind = "CUBA" if neuron is None else neuron.text("type")
        if kind in _SPIKING:
            made = self._cuba(layer, shape, neuron)
        elif kind == "SDNN" and neuron is not None:
            made = self._sigma_delta(layer, shape, neuron, is_input)
        else:
            raise UnsupportedError(
                f"{layer.name}: found {kind} neurons, allowed LOIHI, CUBA and SDNN; resonate-and-"
                "fire neurons are not here yet"
            )
        bias = None if is_input or "bias" not in layer else layer.whole("bias")
        mantissa = np.array(_spread(layer, "bias", bias, shape))
        delay = self._axonal_delay(layer, shape)
        self.populations[layer.name] = QuantizedPopulation(
            **{"shape": shape, "bias_mantissa": mantissa, "axonal_delay": delay, **made}
        )
        self.source = layer.name

    def _axonal_delay(self, layer: _Layer, shape: Shape) -> Any:
        """The delays of a conv or pool layer, one a channel, which SLAYER trains and netx drops."""
        if layer.kind not in ("conv", "pool") or "delay" not in layer:
            return 0
        delay = layer.whole("delay")
        if not np.any(delay):
            return 0
        self.notes.append(
            f"{layer.name}: its delays of up to {delay.max()} steps hold for what leaves it, as in "
            "SLAYER; netx drops them"
        )
        return np.array(_spread(layer, "delay", delay, shape))

    def _cuba(self, layer: _Layer, shape: Shape, neuron: _Layer | None) -> dict[str, Any]:
        order = len(self.populations)
        interval = self.options.reset_interval
        reset = (
            None
            if interval is None
            else PeriodicReset(interval, (order + self.options.reset_offset) % interval)
        )
        made = {"bias_exponent": BIAS_EXPONENT, "reset": reset}
        if neuron is None:
            self.notes.append(
                f"{layer.name}: no neuron in the file, so netx's default: u does not decay, v "
                "forgets at every step, and no spike ever"
            )
            return {**made, "decay_u": -1, "decay_v": DECAY_ONE, "threshold": NEVER}
        threshold = neuron.one("vThMant")
        if threshold > NEVER:
            self.notes.append(
                f"{layer.name}: the threshold {threshold} is one that v never reaches, as is "
                f"{NEVER}, which takes its place"
            )
            threshold = NEVER
        for key, ignored in (("refDelay", 1), ("weight_exp", 0)):
            if key in neuron and np.any(neuron.whole(key) != ignored):
                self.notes.append(f"{neuron.name}.{key}: not {ignored}, but netx does not use it")
        return {
            **made,
            "decay_u": neuron.one("iDecay") - 1,
            "decay_v": neuron.one("vDecay"),
            "threshold": threshold,
        }

    def _sigma_delta(
        self, layer: _Layer, shape: Shape, neuron: _Layer, is_input: bool
    ) -> dict[str, Any]:
        if self.options.reset_interval is not None:
            self.notes.append(f"{layer.name}: sigma-delta neurons are not reset, as in netx")
        made: dict[str, Any] = {"decay_u": 0, "decay_v": 0, "threshold": 0}
        if not is_input and "sigma_output" in neuron:
            return {**made, "model": "sigma"}
        exponent = self.options.spike_exponent
        return {
            **made,
            "threshold": neuron.one("vThMant"),
            "model": "delta" if is_input else "sigma_delta",
            "activation": "unit" if is_input else "relu",
            "spike_exponent": exponent,
            "state_exponent": BIAS_EXPONENT,
            "bias_exponent": exponent + BIAS_EXPONENT,
        }

    def network(self) -> QuantizedNetwork:
        """What has been read."""
        if not self.populations:
            raise UnsupportedError("found no layer with neurons, allowed one or more")
        return QuantizedNetwork(
            self.name,
            self.chip.name,
            self.inputs,
            self.populations,
            self.projections,
            ([*self.populations][-1],),
            tuple(self.errors),
            readout=self.readout,
            metadata={**self.metadata, "source": "netx", "notes": self.notes},
        )


def _spread(layer: _Layer, what: str, values: IntArray | None, shape: Shape) -> IntArray:
    """A value per neuron from one number, one per channel or one per neuron."""
    if values is None:
        return np.zeros(int(np.prod(shape)), dtype=np.int64)
    if values.size in (1, shape[-1]):
        return np.broadcast_to(values.ravel(), shape).ravel()
    if values.shape == shape:
        return values.ravel()
    raise ArtifactError(
        f"{layer.name}.{what}: found the shape {values.shape}, allowed one number, "
        f"({shape[-1]},) or {shape}"
    )


def _exact_format(name: str, weight: IntArray, chip: ChipSpec) -> SynapseFormat:
    """The narrowest format that holds whole weights without error, else the best of 8 bits."""
    low, high = int(weight.min(initial=0)), int(weight.max(initial=0))
    common = int(np.bitwise_or.reduce(np.abs(weight), axis=None)) if weight.size else 0
    modes: list[SignMode] = ["mixed"]
    modes += ["excitatory"] if low >= 0 else ["inhibitory"] if high <= 0 else []
    for bits in chip.weight_bits:
        fitting = [
            format
            for mode in modes
            for exponent in exact_exponents(bits, mode, chip)
            if _holds(format := SynapseFormat(bits, exponent, mode), low, high, common)
        ]
        if fitting:
            return min(fitting, key=lambda f: (modes.index(f.sign_mode), abs(f.exponent)))
    return choose_format(name, weight / WEIGHT_SCALE, max(chip.weight_bits), chip)


def _holds(format: SynapseFormat, low: int, high: int, common: int) -> bool:
    """Whether weights in a range, with no bit outside of ``common``, are on a format's grid."""
    scale = 2.0**format.exponent
    grid = max(1, int(format.step * scale))
    inside = format.minimum * scale <= low and high <= format.maximum * scale
    return inside and common % grid == 0


def notes(network: Any) -> list[str]:
    """What a network's file was read in another way than it says, or than netx would."""
    found: Mapping[str, Any] = network.metadata
    return list(found.get("notes", []))

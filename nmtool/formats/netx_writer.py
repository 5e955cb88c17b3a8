"""netx files (.net): the chip's integers written as lava-dl's HDF5 exchange format.

What is written is what ``lava.lib.dl.netx.hdf5`` reads back to the same spikes; what the format
cannot say is refused, with the reason.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from nmtool.backends.base import Recording
from nmtool.backends.reference import ReferenceBackend
from nmtool.chip import ChipSpec
from nmtool.compiler import Program, Site, compile_program
from nmtool.errors import CheckFailed, UnsupportedError
from nmtool.fixedpoint import IntArray, exact_shift, shift
from nmtool.formats.claims import MAX_CHIPS
from nmtool.formats.container import writing
from nmtool.formats.netx import BIAS_EXPONENT, NetxOptions, load_netx
from nmtool.network import data_flow
from nmtool.operations import (
    Conv,
    Dense,
    Flatten,
    Operation,
    Scale,
    Sparse,
    SumPool,
    chain_shape,
    weighted,
    with_weight,
)
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection
from nmtool.spikes import SpikeTrain

CHECKED_SAMPLES, CHECKED_STEPS = 3, 60

NOT_BUILT = ("pool", "average", "convT", "unpool", "concat")
"""Types of layers for which ``lava.lib.dl.netx.hdf5.Network`` raises NotImplementedError.

Source: its ``_create`` in lava-dl 0.6.0, which counts layers that are skipped too.
"""


@dataclass(frozen=True)
class Export:
    """What an export wrote: the options that read it back, and what was compared.

    ``messages`` counts the spikes and graded messages that both networks gave on random input.
    ``not_built`` are the layers that lava-dl's own loader cannot build.
    """

    options: NetxOptions
    populations: Mapping[str, str]
    messages: int
    not_built: tuple[str, ...] = ()


def export_netx(network: QuantizedNetwork, path: Path, chip: ChipSpec) -> Export:
    """Write a netx file after it has been read back and has given the same messages.

    Raises:
        UnsupportedError: something that a netx file cannot say, with its name.
        CheckFailed: what was read back differs; nothing is written.
        WriteError: it cannot be written.
    """
    made, content = _trial(network, path, chip)
    with writing(path) as temporary:
        temporary.write_bytes(content)
    return made


def check_netx(network: QuantizedNetwork, path: Path, chip: ChipSpec) -> Export:
    """All that ``export_netx`` checks; nothing is written to ``path``.

    Raises:
        UnsupportedError: something that a netx file cannot say, with its name.
        CheckFailed: what was read back differs.
    """
    return _trial(network, path, chip)[0]


def _trial(network: QuantizedNetwork, path: Path, chip: ChipSpec) -> tuple[Export, bytes]:
    """A file that has been read back and has given the same messages, and its content."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / path.name
        options = save_netx(network, trial)
        again = load_netx(trial, chip, options)
        content = trial.read_bytes()
        missing = not_built(trial)
    roomy = Site(chips=MAX_CHIPS)  # a file is for any board
    programs = [compile_program(n, chip, None, CHECKED_STEPS, site=roomy) for n in (network, again)]
    left, right = (_random_run(program) for program in programs)
    pairs = dict(zip(programs[0].order, programs[1].order, strict=True))
    for ours, theirs in pairs.items():
        if left.spikes[ours] != right.spikes[theirs]:
            raise CheckFailed(
                f"{path}: population {ours} gives other spikes when it is read back as "
                f"{theirs}; nothing was written"
            )
    messages = sum(len(train) for train in left.spikes.values())
    return Export(options, pairs, messages, missing), content


def not_built(path: str | Path, num_layers: int | None = None) -> tuple[str, ...]:
    """The layers of a netx file that lava-dl's own loader cannot build, such as ``layer 2 (pool)``.

    The file is one that ``load_netx`` has read; ``num_layers`` is netx's own option.
    """
    with h5py.File(path) as file:
        layers = file["layer"]
        stored = [np.ravel(layers[str(k)]["type"][()])[0] for k in range(len(layers))[:num_layers]]
    kinds = [kind.decode() if isinstance(kind, bytes) else str(kind) for kind in stored]
    return tuple(f"layer {k} ({kind})" for k, kind in enumerate(kinds) if kind in NOT_BUILT)


def _random_run(program: Program) -> Recording:
    """All messages on random input, the same for every program with inputs of one kind."""
    rng = np.random.default_rng(0)
    spikes = {}
    for name, source in program.network.inputs.items():
        shape = (CHECKED_SAMPLES, source.size, CHECKED_STEPS)
        raster = (rng.random(shape) < 0.3).astype(np.int64)
        if source.kind == "bias":
            raster = np.broadcast_to(rng.integers(-50, 100, (*shape[:2], 1)), shape)
        elif source.graded:
            raster *= rng.integers(-100, 100, shape)
        spikes[name] = SpikeTrain.from_raster(raster, source.graded)
    with ReferenceBackend().open(program) as session:
        return session.run(spikes, probe="spikes")


def save_netx(network: QuantizedNetwork, path: str | Path) -> NetxOptions:
    """Write a netx file, whole or not at all; returns the options that read the same network back.

    A file says nothing of resets and of the exponent of messages: these are options of reading.

    Raises:
        UnsupportedError: something that a netx file cannot say, with its name.
        WriteError: it cannot be written.
    """
    options = _options(network)
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for number, fields in enumerate(_layers(network)):
            group = file.create_group(f"layer/{number}")
            for key, value in fields.items():
                group.create_dataset(key, data=value)
    with writing(Path(path)) as temporary:
        temporary.write_bytes(image.getvalue())
    return options


def _options(network: QuantizedNetwork) -> NetxOptions:
    """With which options netx reads resets and messages as the network has them."""
    order = list(data_flow(network.inputs, network.populations, network.projections))
    graded = [p for p in network.populations.values() if p.model in ("delta", "sigma_delta")]
    exponents = {p.spike_exponent for p in graded}
    if len(exponents) > 1 or any(p.state_exponent != BIAS_EXPONENT for p in graded):
        raise UnsupportedError(
            f"network: found the spike exponents {sorted(exponents)} and state exponents "
            f"{sorted({p.state_exponent for p in graded})}, netx has one spike exponent and the "
            f"state exponent {BIAS_EXPONENT}"
        )
    plain = NetxOptions(spike_exponent=exponents.pop() if exponents else BIAS_EXPONENT)
    resets = {
        k: network.populations[name].reset
        for k, name in enumerate(order)
        if network.populations[name].model == "cuba"
    }
    if all(reset is None for reset in resets.values()):
        return plain
    phases = {
        (reset.interval, (reset.offset - k) % reset.interval) if reset else (0, 0)
        for k, reset in resets.items()
    }
    if len(phases) > 1:
        raise UnsupportedError(
            "network: found resets that netx does not know: it resets all layers at one interval, "
            "each a step later than the one before"
        )
    ((interval, offset),) = phases
    return replace(plain, reset_interval=interval, reset_offset=offset)


def _layers(network: QuantizedNetwork) -> Iterator[dict[str, Any]]:
    """The fields of every layer of the file, in order."""
    yield _input(network)
    for name, (forward, recurrent) in _feeds(network).items():
        population = network.populations[name]
        if forward is None:
            continue
        projection = network.projections[forward]
        flattens = isinstance(projection.operations[0], Flatten)
        if flattens:
            size = int(np.prod(network.shapes[projection.source]))
            yield {"type": _text("flatten"), "shape": [size, 1, 1]}
        fields = _synapses(network, forward, projection, flattens)
        if recurrent is not None:
            fields |= _recurrent(recurrent, network.projections[recurrent], fields)
        yield {
            **fields,
            "shape": list(population.shape[::-1]),
            **_neuron(network, name, population),
        }
    if network.readout is not None and network.readout.neurons_per_class > 1:
        if network.readout.kind != "count":
            raise UnsupportedError(
                f"readout: found {network.readout.kind} of {network.readout.neurons_per_class} "
                "neurons a class, a netx file averages the spikes of a class; use the readout count"
            )
        outputs = network.sizes[network.outputs[0]] // network.readout.neurons_per_class
        yield {"type": _text("average"), "shape": [outputs, 1, 1]}


def _input(network: QuantizedNetwork) -> dict[str, Any]:
    if len(network.inputs) != 1:
        raise UnsupportedError(
            f"network: found {len(network.inputs)} inputs, a netx file has exactly 1"
        )
    ((name, source),) = network.inputs.items()
    fields = {"type": _text("input"), "shape": list(source.shape[::-1])}
    if source.drives is None:
        if source.graded:
            raise UnsupportedError(
                f"input {name}: found graded values into synapses, a netx file has spikes there"
            )
        return fields
    driven = network.populations[source.drives]
    transform = network.metadata.get("input_transform", {"weight": 64, "bias": 0})
    fields |= {key: np.array([value], np.float32) for key, value in transform.items()}
    if np.any(driven.bias_mantissa):
        raise UnsupportedError(
            f"population {source.drives}: found a bias of its own, the first population of a "
            "netx file has only what its input drives it with"
        )
    return fields | _neuron(network, source.drives, driven)


def _feeds(network: QuantizedNetwork) -> dict[str, tuple[str | None, str | None]]:
    """For each population in order the projections into it: from the one before, from itself."""
    driven = [source.drives for source in network.inputs.values() if source.drives]
    before = driven[0] if driven else next(iter(network.inputs))
    feeds: dict[str, tuple[str | None, str | None]] = {}
    for name in data_flow(network.inputs, network.populations, network.projections):
        into = {key: p for key, p in network.projections.items() if p.target == name}
        forward = [key for key, p in into.items() if p.source == before]
        recurrent = [key for key, p in into.items() if p.source == name]
        chained = name in driven or len(forward) == 1
        if not chained or len(forward) + len(recurrent) != len(into) or len(recurrent) > 1:
            raise UnsupportedError(
                f"population {name}: found projections {', '.join(into) or 'none'} into it, a "
                f"netx file has one from the layer before ({before}) and one from itself"
            )
        feeds[name] = (forward[0] if forward else None, recurrent[0] if recurrent else None)
        before = name
    if network.outputs != (before,):
        raise UnsupportedError(
            f"network: found the outputs {', '.join(network.outputs)}, a netx file has its last "
            f"layer ({before})"
        )
    return feeds


def _synapses(
    network: QuantizedNetwork, name: str, projection: QuantizedProjection, flattens: bool
) -> dict[str, Any]:
    operations = with_weight(projection.operations, projection.weight)
    kinds = [type(op).__name__ for op in operations[flattens:]]
    delay = _delay(network, projection)
    if kinds not in (["Dense"], ["Sparse"], ["Conv"], ["SumPool", "Scale"]) or (
        flattens and kinds not in (["Dense"], ["Sparse"])
    ):
        raise UnsupportedError(
            f"projection {name}: found {' + '.join(kinds)}, a netx file has dense (also behind a "
            "flatten), conv and pool layers"
        )
    shape = chain_shape(operations[:flattens], network.shapes[projection.source])
    if kinds[0] in ("Dense", "Sparse"):
        fields: dict[str, Any] = {
            "type": _text("dense"),
            "weight": _matrix(operations[-1]).astype(np.float32),
            "inFeatures": int(np.prod(shape)),
            "outFeatures": network.sizes[projection.target],
        }
        return fields | ({"delay": delay.astype(np.float32)} if np.any(delay) else {})
    if np.any(delay):
        raise UnsupportedError(
            f"projection {name}: found a delay, a netx file has delays in dense layers only"
        )
    first = operations[0]
    return _conv(first) if isinstance(first, Conv) else _pool(operations)


def _conv(operation: Conv) -> dict[str, Any]:
    return {
        "type": _text("conv"),
        "weight": operation.weight.transpose(0, 3, 2, 1).astype(np.float32),
        "inChannels": operation.weight.shape[3] * operation.groups,
        "outChannels": operation.weight.shape[0],
        "kernelSize": list(operation.weight.shape[2:0:-1]),
        "stride": list(operation.stride[::-1]),
        "padding": list(operation.padding[::-1]),
        "dilation": list(operation.dilation[::-1]),
        "groups": operation.groups,
    }


def _pool(operations: tuple[Operation, ...]) -> dict[str, Any]:
    pool, scale = operations
    assert isinstance(pool, SumPool)
    assert isinstance(scale, Scale)
    return {
        "type": _text("pool"),
        "weight": np.full((1, 1, *pool.kernel[::-1]), scale.weight[0], np.float32),
        "kernelSize": list(pool.kernel[::-1]),
        "stride": list(pool.stride[::-1]),
        "padding": list(pool.padding[::-1]),
        "dilation": [1, 1],
    }


def _recurrent(
    name: str, projection: QuantizedProjection, forward: dict[str, Any]
) -> dict[str, Any]:
    dense = len(projection.operations) == 1 and isinstance(projection.operations[0], Dense | Sparse)
    if not dense or np.any(projection.delay) or "delay" in forward or "inFeatures" not in forward:
        raise UnsupportedError(
            f"projection {name}: found a recurrent projection beside delays or other than dense, a "
            "netx file has recurrent dense layers without delays"
        )
    operations = with_weight(projection.operations, projection.weight)
    weight = _matrix(operations[0])
    return {"type": _text("dense_rec"), "weight_rec": weight.astype(np.float32)}


def _matrix(operation: Operation) -> IntArray:
    """Dense or sparse weights as a matrix, shape (target, source)."""
    if isinstance(operation, Sparse):
        matrix = np.zeros(operation.size, dtype=np.int64)
        matrix[operation.target, operation.source] = operation.weight
        return matrix
    return np.asarray(weighted((operation,)).weight, dtype=np.int64)


def _delay(network: QuantizedNetwork, projection: QuantizedProjection) -> IntArray:
    """Delays of every synapse, shape (target, source): synaptic and the source's axonal ones."""
    axonal = np.asarray(network.axonal_delay(projection.source))
    last = projection.operations[-1]
    if not isinstance(last, Dense | Sparse):
        return np.atleast_1d(np.asarray(projection.delay) + axonal.max(initial=0))
    delay = np.broadcast_to(projection.delay, last.weight.shape)
    if isinstance(last, Sparse):
        delay = _matrix(Sparse(delay, last.target, last.source, last.size))
    if isinstance(projection.operations[0], Flatten) and axonal.ndim:
        axonal = axonal.reshape(network.shapes[projection.source]).transpose().ravel()
    return np.asarray(delay + axonal, dtype=np.int64)


def _neuron(
    network: QuantizedNetwork, name: str, population: QuantizedPopulation
) -> dict[str, Any]:
    """The group ``neuron`` and the bias of a layer."""
    for found, what in (
        (population.refractory_delay != 1, "a refractory delay"),
        (name in network.outputs and np.any(population.axonal_delay), "an axonal delay behind it"),
    ):
        if found:
            raise UnsupportedError(f"population {name}: found {what}, a netx file has none")
    fields: dict[str, Any] = {}
    if np.any(population.bias_mantissa):
        fields["bias"] = _bias(name, population).astype(np.float32)
    driven = {source.drives for source in network.inputs.values()}
    if population.model == "delta" and name not in driven:
        raise UnsupportedError(
            f"population {name}: found a delta encoder behind synapses, a netx file has it as its "
            "input layer only"
        )
    neuron: dict[str, Any] = {"vThMant": population.threshold}
    if population.model == "cuba":
        neuron |= {
            "type": _text("CUBA")[0],
            "iDecay": population.decay_u + 1,
            "vDecay": population.decay_v,
            "refDelay": 1,
            "gradedSpike": False,
        }
    else:
        neuron |= {"type": _text("SDNN")[0], "activation": _text("relu")[0]}
        if population.model == "sigma":
            neuron["sigma_output"] = True
        elif population.model == "sigma_delta" and population.activation != "relu":
            raise UnsupportedError(
                f"population {name}: found the activation {population.activation}, a netx file "
                "has relu"
            )
    return fields | {f"neuron/{key}": value for key, value in neuron.items()}


def _bias(name: str, population: QuantizedPopulation) -> IntArray:
    """The bias in netx's exponent, in the population's shape."""
    by = population.bias_exponent - BIAS_EXPONENT
    if population.graded:
        by = 0
    if not exact_shift(population.bias_mantissa, by):
        raise UnsupportedError(
            f"population {name}: found a bias with the exponent {population.bias_exponent} that "
            f"is no multiple of 2^{BIAS_EXPONENT}, which a netx file needs"
        )
    return shift(population.bias_mantissa, by).reshape(population.shape)


def _text(word: str) -> list[bytes]:
    return [word.encode("ascii")]

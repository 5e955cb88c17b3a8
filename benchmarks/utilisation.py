"""What Intel's compiler printed for public networks, beside what nmtool's layout reckons.

    python benchmarks/utilisation.py [--json] [--markdown] [--output FILE.json]

The printed figures are in the stored outputs of lava-dl's tutorials (netx notebooks: oxford,
mnist, pilotnet_snn, pilotnet_sdnn, yolo_kp; S4D notebooks of ``slayer/state_space_models/sCIFAR``).
Where the wheel of lava-dl has the network itself it is laid out; the others are built with the
notebook's shapes and weights of zero, for only shapes, bits and single synapses count.

Every column of a table stands as ``fit`` (nmtool's numbers were chosen so that it agrees),
``bits`` (the bits of the weights were inferred from the column, the formula was not) or
``prediction`` (nothing was). AxonMem is not predicted.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse

import nmtool
from nmtool.chip import ChipSpec, SynapseFormat, load_chip
from nmtool.compiler.fit import LayerFit, Site, lay_out
from nmtool.network import Input
from nmtool.operations import Chain, Conv, Dense, Flatten, Shape, Sparse
from nmtool.quantization import QuantizedNetwork, QuantizedPopulation, QuantizedProjection

WHEEL = Path(sysconfig.get_paths()["purelib"]) / "tests/lava/lib/dl/netx/gts"
Standing = Literal["fit", "bits", "prediction"]
COLUMNS = ("axon_in", "neurons", "syn_mem", "axon_map", "total", "cores")
NOTABLE = 0.05
"""Relative errors above this are listed with their reason."""


@dataclass(frozen=True)
class Printed:
    """A row of a table: what Intel's compiler printed for a layer; None: not in the table.

    ``standing`` holds the columns that stand otherwise than in the rest of the table, ``why`` the
    reason for each error above 5 %.
    """

    layer: str
    axon_in: float | None
    neurons: float | None
    syn_mem: float | None
    axon_map: float | None
    axon_mem: float | None
    cores: int | None
    total: float | None = None
    why: dict[str, str] = field(default_factory=dict)
    standing: dict[str, Standing] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Table:
    """A printed table, the network it is of, and how its columns are to be read.

    ``percent``: shares of the budgets instead of counts, of the fullest slice. Otherwise counts
    are means over the cores, rounded down, but neurons of convolutions, which are a whole tile's.
    ``without`` is a chip without the rule that ``cores`` was fitted on, for comparison. Neurons of
    ``double`` populations take two of the budget.
    """

    name: str
    source: str
    weights: str
    chip: ChipSpec
    without: ChipSpec
    network: Callable[[], QuantizedNetwork]
    rows: tuple[Printed, ...]
    standing: dict[str, Standing]
    percent: bool = False
    double: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Compared:
    """One figure: printed, reckoned, the relative error, and how it stands."""

    table: str
    layer: str
    column: str
    printed: float
    reckoned: float
    error: float
    standing: Standing
    why: str = ""


def main() -> int:
    """Print the comparison; 1 if an error above 5 % has no reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/fit.md")
    parser.add_argument("--output", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    laid_out = [(table, layers(table)) for table in tables()]
    found = [figure for table, fits in laid_out for figure in compare(table, fits)]
    text = json.dumps([asdict(figure) for figure in found], indent=2)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")
    if arguments.json:
        print(text)
    else:
        print("\n".join(markdown(laid_out)))
    unexplained = [f for f in found if abs(f.error) > NOTABLE and not f.why]
    for figure in unexplained:
        print(f"not explained: {figure}", file=sys.stderr)
    return 1 if unexplained else 0


def layers(table: Table, chip: ChipSpec | None = None) -> dict[str, LayerFit]:
    """The layers of a table's network, laid out on eight chips of its kind."""
    chip = chip or table.chip
    found = _lay_out(table, chip)
    if table.double:
        half = _lay_out(table, replace(chip, neurons_per_core=chip.neurons_per_core // 2))
        found.update({name: half[name] for name in table.double})
    return found


def _lay_out(table: Table, chip: ChipSpec) -> dict[str, LayerFit]:
    fit = lay_out(table.network(), chip, Site(chips=8))[1]
    assert fit is not None, table.name
    return {layer.population: layer for layer in fit.layers}


def compare(table: Table, fits: dict[str, LayerFit]) -> Iterator[Compared]:
    """Every printed figure of a table beside nmtool's."""
    for row in table.rows:
        for column in COLUMNS:
            printed = getattr(row, column)
            if printed is None:
                continue
            reckoned = _reckoned(table, fits[row.layer], column)
            error = reckoned / printed - 1
            standing = row.standing.get(column, table.standing.get(column, "prediction"))
            why = row.why.get(column, "")
            yield Compared(table.name, row.layer, column, printed, reckoned, error, standing, why)


def _reckoned(table: Table, layer: LayerFit, column: str) -> float:
    """A figure of a layer as the table prints it."""
    if column == "cores":
        return layer.cores
    name, unit = {
        "axon_in": ("input_axons", 1),
        "neurons": ("neurons", 1),
        "syn_mem": ("synapse_bits", table.chip.synapse_memory.word_bits),
        "axon_map": ("output_axons", 1),
        "total": ("memory_words", 1),
    }[column]
    largest = getattr(layer.largest, name) // unit
    if layer.population in table.double and column in ("neurons", "total"):
        largest += layer.largest.neurons
    if table.percent:
        return float(round(100 * unit * largest / getattr(table.chip, f"{name}_per_core"), 2))
    if column == "axon_in" or (column == "neurons" and len(layer.box) == 3):
        return int(largest)
    return int(getattr(layer.total, name) // unit // layer.cores)


def markdown(laid_out: list[tuple[Table, dict[str, LayerFit]]]) -> Iterator[str]:
    """The tables as they stand in docs/fit.md: printed / reckoned, once where they agree."""
    for table, fits in laid_out:
        columns = [c for c in COLUMNS if any(getattr(r, c) is not None for r in table.rows)]
        found = {(f.layer, f.column): f for f in compare(table, fits)}
        without = layers(table, table.without)
        unit = "per cent of the budgets" if table.percent else "per core"
        yield f"**{table.name}**, {unit}. {table.source} {table.weights}"
        yield ""
        heads = [f"{c.replace('_', ' ')} ({_standing(table, c)})" for c in columns]
        yield f"| layer | {' | '.join(heads)} | AxonMem | cores without |"
        yield "|---" * (len(columns) + 3) + "|"
        for row in table.rows:
            cells = [_cell(found.get((row.layer, column))) for column in columns]
            memory = "" if row.axon_mem is None else f"{row.axon_mem:g}"
            yield f"| {row.layer} | {' | '.join(cells)} | {memory} | {without[row.layer].cores} |"
        yield ""
        notable = [f for f in found.values() if abs(f.error) > NOTABLE]
        for why in dict.fromkeys(f.why for f in notable):
            layer = ", ".join(dict.fromkeys(f.layer for f in notable if f.why == why))
            yield f"- {layer}: {why or 'not explained'}."
        if notable:
            yield ""


def _standing(table: Table, column: str) -> str:
    return table.standing.get(column, "prediction")


def _cell(figure: Compared | None) -> str:
    if figure is None:
        return ""
    if math.isclose(figure.printed, figure.reckoned):
        return f"{figure.printed:g}"
    return f"{figure.printed:g} / **{figure.reckoned:g}** ({figure.error:+.1%})"


# Networks


def network(
    name: str,
    chip: str,
    source: Shape,
    stages: list[tuple[str, Chain, int]],
    drives: bool = False,
) -> QuantizedNetwork:
    """A chain of (name, operations, weight bits) from an input; only shapes and bits count."""
    inputs = {"input": Input(source, "graded", stages[0][0] if drives else None)}
    populations: dict[str, QuantizedPopulation] = {}
    projections: dict[str, QuantizedProjection] = {}
    before, shape = "input", source
    for layer, operations, bits in stages:
        for operation in operations:
            shape = operation.output_shape(shape)
        zero = np.zeros(int(np.prod(shape)), dtype=np.int64)
        populations[layer] = QuantizedPopulation(shape, 4095, 0, 64, zero)
        format = SynapseFormat(bits, 0, "mixed")
        projections[layer] = QuantizedProjection(before, layer, operations, format)
        before = layer
    return QuantizedNetwork(name, chip, inputs, populations, projections, (before,))


def dense(outputs: int, inputs: int) -> Chain:
    """A full matrix."""
    return (Dense(np.zeros((outputs, inputs), dtype=np.int8)),)


def conv(
    outputs: int,
    inputs: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    kernel: int = 3,
) -> Chain:
    """A convolution with a square kernel."""
    weight = np.zeros((outputs, kernel, kernel, inputs), dtype=np.int8)
    return (Conv(weight, stride, padding),)


def oxford() -> QuantizedNetwork:
    """200-256-200 with 8-bit weights."""
    stages = [("256", dense(256, 200), 8), ("200", dense(200, 256), 8)]
    return network("oxford", "loihi2-2022", (200,), stages)


def mnist() -> QuantizedNetwork:
    """784-128-64-10 with 8-bit weights."""
    stages = [("128", dense(128, 784), 8), ("64", dense(64, 128), 8), ("10", dense(10, 64), 8)]
    return network("mnist", "loihi2", (784,), stages)


def pilotnet_snn() -> QuantizedNetwork:
    """The network of the notebook, from the wheel of lava-dl, with its own weights."""
    loaded = nmtool.load(WHEEL / "pilotnet_lif/network.net", chip="loihi2")
    assert isinstance(loaded, QuantizedNetwork)
    return replace(loaded, chip="loihi2-2022")


def pilotnet_sdnn() -> QuantizedNetwork:
    """The shapes of the notebook: the wheel has another, smaller network of this name."""
    stages: list[tuple[str, Chain, int]] = [
        ("layer1", conv(24, 3, (2, 2)), 5),
        ("layer2", conv(36, 24, (2, 2)), 4),
        ("layer3", conv(48, 36, (2, 2)), 4),
        ("layer4", conv(64, 48, (1, 2), (0, 1)), 5),
        ("layer5", conv(64, 64), 4),
        ("layer7", (Flatten(), *dense(100, 2560)), 4),
        ("layer8", dense(50, 100), 6),
        ("layer9", dense(10, 50), 5),
        ("layer10", dense(1, 10), 6),
    ]
    return network("pilotnet_sdnn", "loihi2-2022", (200, 66, 3), stages)


def yolo_kp() -> QuantizedNetwork:
    """Ten convolutions of an image of 448 x 448 x 3."""
    two, same = (2, 2), (1, 1)
    stages = [
        ("conv1", conv(16, 3, two, same), 5),
        ("conv2", conv(32, 16, two, same), 6),
        ("conv3", conv(64, 32, two, same), 5),
        ("conv4", conv(128, 64, two, same), 5),
        ("conv5", conv(256, 128, same, same), 5),
        ("conv6", conv(256, 256, two, same), 4),
        ("conv7", conv(512, 256, same, same), 5),
        ("conv8", conv(256, 512, kernel=1), 5),
        ("conv9", conv(512, 256, same, same), 5),
        ("conv10", conv(48, 512, kernel=1), 6),
    ]
    return network("yolo_kp", "loihi2", (448, 448, 3), stages)


def spread(inputs: int, each: int) -> Chain:
    """Every input to ``each`` neurons of its own."""
    matrix = scipy.sparse.kron(scipy.sparse.eye_array(inputs), np.ones((each, 1)), format="coo")
    return (Sparse.from_matrix(matrix.astype(np.int64)),)


def gather(outputs: int, each: int) -> Chain:
    """The transpose: ``each`` neurons to every output."""
    matrix = scipy.sparse.kron(scipy.sparse.eye_array(outputs), np.ones((1, each)), format="coo")
    return (Sparse.from_matrix(matrix.astype(np.int64)),)


def s4d() -> QuantizedNetwork:
    """256-4096-256-256, one block of the S4D profile."""
    stages = [
        ("s4d", spread(256, 16), 1),
        ("sum", gather(256, 16), 1),
        ("dense", dense(256, 256), 4),
    ]
    return network("s4d", "loihi2", (256,), stages)


def scifar() -> QuantizedNetwork:
    """3-128, one of the four equal blocks 8192-128-128, and 10."""
    stages = [
        ("in", dense(128, 3), 6),
        ("s4d", spread(128, 64), 1),
        ("sum", gather(128, 64), 1),
        ("identity", spread(128, 1), 1),
        ("out", dense(10, 128), 3),
    ]
    return network("scifar", "loihi2", (3,), stages)


# Tables


def tables() -> tuple[Table, ...]:
    """All printed tables, the older compiler's first; rows from the first layer to the last."""
    older, newer = load_chip("loihi2-2022"), load_chip("loihi2")
    anyhow = replace(newer, slice_widths="any")
    return (
        Table(
            "oxford",
            "lava-dl netx oxford/run.ipynb (September 2022).",
            "8-bit weights, as both figures of whole layers want.",
            older,
            newer,
            oxford,
            OXFORD,
            {"syn_mem": "fit", "cores": "fit"},
        ),
        Table(
            "pilotnet_snn",
            "lava-dl netx pilotnet_snn/benchmark.ipynb (2022).",
            "The network and its weights are those in lava-dl's wheel.",
            older,
            newer,
            pilotnet_snn,
            PILOTNET_SNN,
            dict.fromkeys(COLUMNS, "fit"),
        ),
        Table(
            "pilotnet_sdnn",
            "lava-dl netx pilotnet_sdnn/benchmark.ipynb (October 2022).",
            "Bits inferred from SynMem: the wheel has a smaller network of this name.",
            older,
            newer,
            pilotnet_sdnn,
            PILOTNET_SDNN,
            {**dict.fromkeys(COLUMNS, "fit"), "syn_mem": "bits"},  # the tiles of the table above
        ),
        Table(
            "mnist",
            "lava-dl netx mnist/run.ipynb.",
            "8-bit weights: the notebook's go up to 254.",
            newer,
            anyhow,
            mnist,
            MNIST,
            {column: "fit" for column in COLUMNS if column != "cores"},
            percent=True,
        ),
        Table(
            "yolo_kp",
            "lava-dl netx yolo_kp/run.ipynb and run_eth.ipynb, one table in both.",
            "Bits inferred from SynMem.",
            newer,
            anyhow,
            yolo_kp,
            YOLO_KP,
            {"neurons": "fit", "syn_mem": "bits", "total": "fit", "cores": "fit"},
            percent=True,
        ),
        Table(
            "s4d",
            "lava-dl sCIFAR/profiling_scripts/num_cores_estimate.ipynb.",
            "Bits of the notebook's weights: 1, 1 and 4 (0 or 9). nmtool has no S4D neurons: they "
            "are reckoned as others that take two of the budget.",
            newer,
            anyhow,
            s4d,
            S4D,
            {"cores": "fit"},
            percent=True,
            double=frozenset({"s4d"}),
        ),
        Table(
            "scifar",
            "lava-dl sCIFAR/test_full_scifar_network_on_loihi.ipynb; three rows of it are there "
            "four times, here once.",
            "Weights of 1 bit, but 6 and 3 bits of the first and the last layer, after the even "
            "weights up to 36 and 6 that the notebook shows.",
            newer,
            anyhow,
            scifar,
            SCIFAR,
            {"cores": "fit"},
            percent=True,
            double=frozenset({"s4d"}),
        ),
    )


OXFORD = (
    Printed("256", 200, 85, 5400, 85, 0, 3),
    Printed("200", 256, 100, 8064, 100, 0, 2),
)

_CAP = (
    "Intel's compiler made slices of 63 neurons, nmtool one of 128, which fits; a limit "
    "of 16000 on input axons and synapse words together would explain it"
)
_FIFTY = (
    "Intel's compiler made slices of 50 neurons, nmtool of 63, which fit; a limit of 16000 on "
    "input axons and synapse words together would forbid 63, but not explain 50"
)
_SPARSE = "rows hold only the weights other than zero, and how many there were is not known"
_BIAS = "an input that is written as a bias has no synapses in nmtool, Intel's layer one axon"

PILOTNET_SNN = (
    Printed("layer0", 1, 3168, None, 1015, 731, 13, why={"axon_in": _BIAS}),
    Printed("layer1", 2, 3072, 81, 253, 93, 25),
    Printed("layer2", 2, 2160, 864, 113, 32, 13),
    Printed("layer3", 2, 2688, 1620, 112, 46, 3),
    Printed("layer4", 1, 2048, 2160, 29, 9, 3),
    Printed("layer5", 1, 2048, 2880, 1280, 0, 2),
    Printed("layer7", 2560, 8, 7253, 8, 0, 12),
    Printed("layer8", 100, 50, 1300, 50, 0, 1),
    Printed("layer9", 50, 10, 150, 10, 0, 1),
    Printed("layer10", 10, 1, 10, 1, 0, 1),
)

_SDNN_SYN_MEM = {"layer4": 2592, "layer8": 1500}
PILOTNET_SDNN = tuple(
    replace(row, syn_mem=_SDNN_SYN_MEM.get(row.layer, row.syn_mem)) for row in PILOTNET_SNN[1:]
)
"""The notebook has the SNN's figures without its input, but for these."""

MNIST = (
    Printed("128", 4.90, 1.22, 78.40, 0.31, 0, 3, 67.14, why=dict.fromkeys(COLUMNS, _FIFTY)),
    Printed("64", 0.80, 1.56, 16.80, 0.40, 0, 1, 14.72),
    Printed("10", 0.40, 0.24, 1.60, 0.06, 0, 1, 1.71),
)

YOLO_KP = (
    Printed("conv1", 0.01, 87.52, 0.34, 1.40, 0.70, 224, 19.88),
    Printed("conv2", 0.01, 87.52, 3.60, 0.70, 0.35, 112, 21.65),
    Printed("conv3", 0.01, 87.52, 10.80, 0.35, 0.17, 56, 26.99),
    Printed("conv4", 0.01, 87.52, 39.60, 0.17, 0.35, 28, 50.03),
    Printed("conv5", 0.01, 87.52, 79.20, 0.17, 0.17, 56, 81.57),
    Printed("conv6", 0.01, 87.52, 72.00, 0.35, 2.80, 16, 78.05),
    Printed("conv7", 0.01, 87.52, 86.40, 0.35, 0.35, 32, 87.61),
    Printed("conv8", 0.01, 87.52, 67.20, 0.09, 0.35, 14, 72.04),
    Printed("conv9", 0.01, 87.52, 86.40, 0.35, 0.17, 32, 87.47),
    Printed("conv10", 0.01, 65.64, 19.20, 16.80, 0.00, 4, 42.26),
)

S4D = (
    Printed("s4d", 1.60, 99.98, 3.21, 12.79, 0, 3, 34.55),
    Printed("sum", 25.60, 6.25, 25.60, 1.60, 0, 1, 43.52),
    Printed("dense", 1.60, 3.10, 51.20, 0.79, 0, 3, 43.52),
)

SCIFAR = (
    Printed("in", 0.02, 3.13, 0.68, 0.80, 0, 1, 1.84),
    Printed("s4d", 0.80, 99.98, 2.80, 12.79, 0, 5, 33.59),
    Printed("sum", 51.20, 1.54, 25.20, 0.39, 0, 3, 61.76, why=dict.fromkeys(COLUMNS, _CAP)),
    Printed("identity", 0.80, 3.13, 0.80, 0.80, 0, 1, 2.56),
    Printed("out", 0.80, 0.24, 2.20, 0.06, 0, 1, 2.50, why=dict.fromkeys(COLUMNS, _SPARSE)),
)


if __name__ == "__main__":
    sys.exit(main())

"""Chips and targets: what the hardware allows (ChipSpec) and where to run (HardwareConfig).

Both are YAML files under ``hw_configs/``; every number of a chip names its source and standing.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NoReturn, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)

from nmtool import yamlio
from nmtool.errors import ConfigError
from nmtool.faultmodel import CoreName, Faults
from nmtool.yamlio import Strict

T = TypeVar("T")
Standing = Literal["paper", "code", "measured", "inferred", "uncertain", "user"]
"""How sure a number is; ``user``: a user's chip file overrides it."""

DOCUMENTED: tuple[Standing, ...] = ("paper", "code", "measured", "user")
"""Standings of what somebody wrote down or measured, not of what was concluded from it."""

UNLIMITED = 1 << 31
"""A limit that stops nothing: nobody has documented one."""

BackendName = Literal["reference", "emulator", "lava-sim", "lava-loihi"]
"""Backends that a target file may name, but that are not there."""

SignMode = Literal["mixed", "excitatory", "inhibitory"]
Duration = Annotated[
    float,
    BeforeValidator(yamlio.parse_duration),
    WithJsonSchema({"type": "string", "pattern": f"^{yamlio.DURATION}$"}),
]


class Documented(Strict, Generic[T]):
    """The documented number that takes the place of an inferred one."""

    value: T
    standing: Literal["paper", "code", "measured"]
    source: str


class Fact(Strict, Generic[T]):
    """A number of a chip, where it is from, and how sure it is.

    ``documented`` is what holds where inferred numbers are not to count.
    """

    value: T
    standing: Standing
    source: str
    documented: Documented[T] | None = None


def _rising(ends: list[int]) -> list[int]:
    if not ends[0] <= ends[1]:
        raise ValueError("a range, the lower end first")
    return ends


def _holds_zero(ends: list[int]) -> list[int]:
    if not ends[0] <= 0 <= ends[1]:
        raise ValueError("a range that holds 0")
    return ends


Count = Annotated[int, Field(ge=1, le=1 << 30)]
Cores = Annotated[int, Field(ge=1, le=1 << 12)]
"""The addresses of the mesh count 4096 cores (Davies et al. 2018)."""
Delay = Annotated[int, Field(ge=0, le=1 << 16)]
Pause = Annotated[int, Field(ge=1, le=1 << 16)]
WeightBits = Annotated[list[Annotated[int, Field(ge=1, le=8)]], Field(min_length=1, max_length=8)]
WeightExponents = Annotated[
    list[Annotated[int, Field(ge=-8, le=7)]],
    Field(min_length=2, max_length=2),
    AfterValidator(_holds_zero),
]
ThresholdBits = Annotated[int, Field(ge=1, le=23)]
Mantissas = Annotated[
    list[Annotated[int, Field(ge=-(1 << 15), le=(1 << 15) - 1)]],
    Field(min_length=2, max_length=2),
    AfterValidator(_holds_zero),
]
Exponents = Annotated[
    list[Annotated[int, Field(ge=0, le=15)]],
    Field(min_length=2, max_length=2),
    AfterValidator(_rising),
]
"""What the numbers of any chip may be: the simulators' registers hold no others."""


Bits = Annotated[int, Field(ge=0, le=1 << 10)]
MessageBits = Annotated[list[Literal[0, 8, 16, 24, 32]], Field(min_length=1, max_length=5)]
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,99}$")]
"""A name that files and folders are called after: it leads nowhere else."""


class SynapseMemory(Strict):
    """How a core stores rows of synapses, all in bits (:mod:`nmtool.compiler.memory`).

    A row of n synapses of b bits takes ``ceil((n (b + index_bits) + header_bits) / word_bits)``
    words, one sum for every ``block`` synapses (null: all at once). Single synapses take the
    smallest index of ``sparse_index_bits`` that counts their targets (null: ``index_bits``).
    Kernels are ``rows``, one for every pattern of targets, or ``shared``: one row for every weight
    of a channel, its outputs in powers of two from ``kernel_channels_min``, with
    ``kernel_header_bits``. With ``delays`` a synapse also stores its delay.
    """

    word_bits: Annotated[int, Field(ge=1, le=1 << 12)]
    header_bits: Bits
    block: Count | None
    index_bits: Bits
    sparse_index_bits: Annotated[list[Bits], Field(min_length=1, max_length=16)] | None
    kernels: Literal["rows", "shared"]
    kernel_header_bits: Bits
    kernel_channels_min: Count = 1
    delays: bool


class Axons(Strict):
    """How axons are counted.

    ``discrete``: an input axon for every source neuron that reaches a core, an output axon for
    every neuron and core that it reaches; the channels of one place that feed a convolution share
    one, which takes ``per_place`` output axons, and places whose first targets lie in the same
    stretch of ``base_targets`` share rows. ``shared``: a convolution has one input axon for each of
    its strides in x, a neuron one entry of the axon map for each projection, and the channels of
    one place that feed a convolution share one for every power of two in their number.
    """

    kind: Literal["discrete", "shared"]
    per_place: Count = 1
    base_targets: Count = 1


CostEvent = Literal[
    "neuron_inactive",
    "neuron_active",
    "spike",
    "message_out",
    "message_in",
    "synapse_dense",
    "synapse_sparse",
    "synapse_convolution",
    "hop_x",
    "hop_y",
]
"""What a cost model may put a price on; :mod:`nmtool.measure.cost` counts each of them."""

PicoJoule = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
NanoSecond = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class Cost(Strict):
    """What one event takes: energy in pJ and time in ns (null: not known), and where it is from."""

    energy_pj: PicoJoule | None = None
    time_ns: NanoSecond | None = None
    standing: Standing
    source: Annotated[str, Field(min_length=1)]


class Barrier(Strict):
    """How long the synchronisation at the end of a step takes, in ns, by the tiles in use.

    Between two entries the lower one holds (``steps``), or a straight line (``linear``); no entry
    holds for the tiles of several chips.
    """

    tiles: Annotated[list[Count], Field(min_length=1)]
    time_ns: Annotated[list[NanoSecond], Field(min_length=1)]
    between: Literal["steps", "linear"] = "steps"
    standing: Standing
    source: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _a_table(self) -> Barrier:
        if len(self.tiles) != len(self.time_ns) or sorted(set(self.tiles)) != self.tiles:
            raise ValueError("rising numbers of tiles, and as many times")
        return self


class StepTime(Strict):
    """How the times of a core make up those of a step.

    The step ends when the slowest core is done: with its neurons and, after them, its messages
    (``sum``), or with the longer of the two, as if they went on side by side (``max``).
    """

    core: Literal["sum", "max"]
    standing: Standing
    source: Annotated[str, Field(min_length=1)]


class CostModel(Strict):
    """What the events of a run cost on a chip; events that are not in it cost nothing in it.

    Without a ``barrier`` and a ``step``, no time can be modelled.
    """

    about: Annotated[str, Field(min_length=1)]
    events: Annotated[dict[CostEvent, Cost], Field(min_length=1)]
    step: StepTime | None = None
    barrier: Barrier | None = None


class ChipHeader(Strict):
    """What chip files begin with."""

    schema_: Literal["nmtool.chip/v1"] = Field(alias="schema")
    name: FileName


class ChipFile(ChipHeader):
    """A chip file that names every number, such as ``hw_configs/chips/*.yaml``."""

    cores: Fact[Cores]
    neurons_per_core: Fact[Count]
    synapse_bits_per_core: Fact[Count]
    input_axons_per_core: Fact[Count]
    output_axons_per_core: Fact[Count]
    profiles_per_core: Fact[Count]
    threshold_profiles_per_core: Fact[Count | None]
    synapse_formats_per_core: Fact[Count | None]
    delay_slots_per_core: Fact[Count | None]
    delay_slots_min: Fact[Count | None]
    memory_words_per_core: Fact[Count | None]
    split_synapse_bits: Fact[Count | None]
    split_weight_bits: Fact[Annotated[int, Field(ge=1, le=8)] | None]
    slice_widths: Fact[Literal["any", "powers of two", "halves"]]
    synapse_memory: Fact[SynapseMemory]
    axons: Fact[Axons]
    mesh: Fact[Annotated[list[Cores], Field(min_length=2, max_length=2)]]
    cores_per_tile: Fact[Cores]
    message_bits: Fact[MessageBits]
    convolution_width_max: Fact[Count | None]
    convolution_hangs_from: Fact[Annotated[list[Count], Field(min_length=3, max_length=3)] | None]
    probed_neurons_max: Fact[Count | None]
    weight_bits: Fact[WeightBits]
    weight_exponent: Fact[WeightExponents]
    delay_max: Fact[Delay]
    refractory_delay_max: Fact[Pause]
    decay_bits: Fact[Literal[12]]
    state_bits: Fact[Literal[24]]
    current_overflow: Fact[Literal["wrap"]]
    voltage_overflow: Fact[Literal["saturate"]]
    threshold_bits: Fact[ThresholdBits]
    bias_mantissa: Fact[Mantissas]
    bias_exponent: Fact[Exponents]
    cost_models: Fact[dict[str, CostModel] | None]
    static_power: Fact[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None]


_HEADER = tuple(ChipHeader.model_fields)


class Change(Strict, Generic[T]):
    """A number of another chip that a chip file changes, with its source or without."""

    value: T
    standing: Standing = "user"
    source: str = ""
    documented: Documented[T] | None = None


def _changes() -> dict[str, Any]:
    """The fields of a file that changes another: every number alone, or with its source."""
    kinds = {
        key: field.annotation.__pydantic_generic_metadata__["args"][0]  # type: ignore[union-attr]
        for key, field in ChipFile.model_fields.items()
        if key not in _HEADER
    }
    return {key: (kind | Change[kind], None) for key, kind in kinds.items()}  # type: ignore[valid-type]


ChipChanges = create_model(
    "ChipChanges",
    __base__=ChipHeader,
    __doc__="A chip file that changes single numbers of the chip that it extends.",
    extends=(str, ...),
    **_changes(),
)


@dataclass(frozen=True)
class ChipSpec:
    """Limits and number formats of one chip. ``facts`` holds the source of every number.

    Ranges are inclusive (low, high). Memory is in bits. ``weight_exponent`` e scales a weight by
    2^e. Limits that are not known are UNLIMITED. ``cost_models`` by name (the first is
    taken unless one is named) and ``static_power`` in mW are None where there is no public figure.

    Slices of a population are filled up to ``split_synapse_bits``, reckoned with weights of
    ``split_weight_bits`` (None: their own), below what a core holds. ``slice_widths``: any; powers
    of two along the x of convolutions; or, with ``halves``, also half as many channels, and
    neurons of other populations, until they fit. ``mesh`` counts tiles (x, y). A neuron takes
    ``delay_slots_min`` accumulator slots or more (None: as many as its delays).
    """

    name: str
    cores: int
    neurons_per_core: int
    synapse_bits_per_core: int
    input_axons_per_core: int
    output_axons_per_core: int
    profiles_per_core: int
    threshold_profiles_per_core: int
    synapse_formats_per_core: int
    delay_slots_per_core: int
    delay_slots_min: int | None
    memory_words_per_core: int
    split_synapse_bits: int
    split_weight_bits: int | None
    slice_widths: str
    synapse_memory: SynapseMemory
    axons: Axons
    mesh: tuple[int, int]
    cores_per_tile: int
    message_bits: tuple[int, ...]
    convolution_width_max: int
    convolution_hangs_from: tuple[int, int, int] | None
    probed_neurons_max: int
    weight_bits: tuple[int, ...]
    weight_exponent: tuple[int, int]
    delay_max: int
    refractory_delay_max: int
    decay_bits: int
    state_bits: int
    current_overflow: str
    voltage_overflow: str
    threshold_bits: int
    bias_mantissa: tuple[int, int]
    bias_exponent: tuple[int, int]
    cost_models: Mapping[str, CostModel] | None
    static_power: float | None
    facts: Mapping[str, Fact[Any]]

    def documented(self) -> ChipSpec:
        """The same chip by its documented limits only; what was merely inferred limits nothing."""
        values: dict[str, Any] = {}
        for key in LIMITS:
            fact = self.facts[key]
            if fact.standing in DOCUMENTED:
                continue
            values[key] = fact.documented.value if fact.documented else UNLIMITED
        return replace(self, **values)

    def standing(self, key: str) -> str:
        """Whether the number that holds is documented, inferred or uncertain, and its source."""
        fact = self.facts[key]
        alternative = fact.documented
        chosen = fact
        if alternative is not None and _plain(alternative.value) == getattr(self, key):
            chosen = Fact(value=0, standing=alternative.standing, source=alternative.source)
        kind = "documented" if chosen.standing in DOCUMENTED else chosen.standing
        return f"{kind}: {chosen.source}"

    @property
    def threshold_max(self) -> int:
        """The largest threshold mantissa."""
        return (1 << self.threshold_bits) - 1

    @property
    def decay_max(self) -> int:
        """The largest value of a decay register."""
        return (1 << self.decay_bits) - 1


LIMITS = (
    "cores",
    "neurons_per_core",
    "synapse_bits_per_core",
    "input_axons_per_core",
    "output_axons_per_core",
    "profiles_per_core",
    "threshold_profiles_per_core",
    "synapse_formats_per_core",
    "delay_slots_per_core",
    "memory_words_per_core",
    "split_synapse_bits",
    "convolution_width_max",
    "probed_neurons_max",
)
"""The numbers of a chip that say how much fits; the others say in which form."""


@dataclass(frozen=True)
class SynapseFormat:
    """How the weights of one projection are stored: mantissas of ``bits`` bits, times 2^exponent.

    Weight mantissas lie on an 8-bit scale whatever ``bits`` is (Loihi, Lava): a mixed-sign
    mantissa is a multiple of ``2^(9 - bits)`` in [-256, 256), a single-signed one a multiple of
    ``2^(8 - bits)`` below 256. Source: nengo-loihi block.py, lava-nc utils/weightutils.py.
    """

    bits: int
    exponent: int
    sign_mode: SignMode

    @property
    def step(self) -> int:
        """The distance between neighbouring mantissas."""
        return 1 << ((9 if self.sign_mode == "mixed" else 8) - self.bits)

    @property
    def minimum(self) -> int:
        """The smallest mantissa."""
        return {"mixed": -256, "excitatory": 0, "inhibitory": self.step - 256}[self.sign_mode]

    @property
    def maximum(self) -> int:
        """The largest mantissa."""
        return 0 if self.sign_mode == "inhibitory" else 256 - self.step

    def __str__(self) -> str:
        return f"{self.bits} bit {self.sign_mode}, 2^{self.exponent}"


class Probes(Strict):
    """Which populations' spikes are recorded: outputs, all, or a list of names."""

    spikes: Literal["outputs", "all"] | list[str] = "outputs"


class Timeouts(Strict):
    """How long loading and one run may take, in seconds (durations with a unit in the file).

    ``lock`` is how long to wait for a board that somebody else holds, ``board`` how long SLURM or a
    host may take to answer whether a board can be had.
    """

    load: Duration = 120.0
    run: Duration = 60.0
    lock: Duration = 0.0
    board: Duration = 10.0


class Slurm(Strict):
    """A board that SLURM hands out: any of a partition, or one node."""

    partition: Annotated[str, Field(min_length=1)] | None = None
    node: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _named(self) -> Slurm:
        if self.partition is None and self.node is None:
            raise ValueError("a partition, a node, or both")
        return self


class Board(Strict):
    """How a board is reached: through SLURM, or by the address of its host.

    ``loihi_gen`` is the chip's stepping and ``host_binary`` the driver on the host, both as
    ``lava.utils.loihi`` takes them.
    """

    slurm: Slurm | None = None
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]*$")] | None = None
    host_binary: str = "nxcore/bin/nx_driver_server"
    loihi_gen: Literal["N3B2", "N3B3", "N3C1", "N3D1"] = "N3B3"

    @model_validator(mode="after")
    def _one_way(self) -> Board:
        if (self.slurm is None) == (self.host is None):
            raise ValueError("either slurm or host, one of them")
        return self

    def __str__(self) -> str:
        if self.slurm is None:
            return f"host {self.host}"
        parts = (("partition", self.slurm.partition), ("node", self.slurm.node))
        return "SLURM " + " ".join(f"{what} {name}" for what, name in parts if name)


class RecoveryCommand(Strict):
    """A command that is to mend a board; it is run without a shell."""

    command: Annotated[str, Field(min_length=1)]
    timeout: Duration = 60.0

    @field_validator("command")
    @classmethod
    def _words(cls, command: str) -> str:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"a command in the shell's quoting ({error})") from None
        if not words:
            raise ValueError("a command of one word or more")
        return command

    def __str__(self) -> str:
        return f"command {self.command}"


RecoveryStep = Literal["reload", "reset"] | RecoveryCommand


class HardwareConfig(Strict):
    """One target: the chip, the backend that stands for it, faults, probes and timeouts.

    ``current_overflow: lava`` has lava-sim fold u once, as Lava does, not modulo 2^24 as the chip.
    ``chips`` are those of the board and ``cores_per_chip`` how many cores of each can be used
    (all, unless given); ``excluded_cores`` are left free. ``by_core`` has a simulator run every
    core's share of a program by itself.
    ``board``, ``measure`` and ``allow_python_models`` are lava-loihi's; ``recovery`` is what to do
    after a fault of the board, one step before each further attempt.
    """

    schema_: Literal["nmtool.hardware/v1"] = Field(alias="schema")
    name: FileName
    chip: str
    backend: BackendName = "emulator"
    weight_bits: Literal[1, 2, 3, 4, 5, 6, 8] | None = None
    faults: Faults | None = None
    current_overflow: Literal["chip", "lava"] = "chip"
    probes: Probes = Probes()
    timeouts: Timeouts = Timeouts()
    chips: Annotated[int, Field(ge=1, le=1 << 14)] = 1
    cores_per_chip: Annotated[int, Field(ge=1, le=1 << 14)] | None = None
    excluded_cores: Annotated[tuple[CoreName, ...], Field(strict=False)] = ()
    by_core: bool = False
    board: Board | None = None
    measure: list[Literal["power", "time"]] = []
    allow_python_models: bool | list[str] = False
    recovery: list[RecoveryStep] = []

    @model_validator(mode="after")
    def _a_board_where_there_is_one(self) -> HardwareConfig:
        if self.backend == "lava-loihi":
            if self.board is None:
                raise ValueError(
                    "a board with the backend lava-loihi: board: {slurm: {partition: NAME}} or "
                    "board: {host: ADDRESS}"
                )
            return self
        for key in ("board", "measure", "allow_python_models"):
            if getattr(self, key):
                raise ValueError(f"no {key} with the backend {self.backend}, only with lava-loihi")
        return self

    @model_validator(mode="after")
    def _a_simulator_where_one_is_needed(self) -> HardwareConfig:
        if self.faults is not None and self.backend not in ("reference", "emulator"):
            raise ValueError(
                f"no faults with the backend {self.backend}, only with a simulator "
                "that acts them out: emulator, reference"
            )
        if self.by_core and self.backend not in ("reference", "emulator"):
            raise ValueError(
                f"no by_core with the backend {self.backend}, only with a simulator: emulator, "
                "reference"
            )
        if self.current_overflow == "lava" and self.backend != "lava-sim":
            raise ValueError(
                f"no current_overflow: lava with the backend {self.backend}, only with lava-sim"
            )
        return self

    def with_faults(self, **changes: Any) -> HardwareConfig:
        """The same target with other faults; without arguments the same without faults."""
        faults = None
        if self.faults and changes:
            faults = Faults.model_validate({**self.faults.model_dump(), **changes})
        return self.model_copy(update={"faults": faults})


def config_folder() -> Path:
    """The shipped ``hw_configs``: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    inside = here / "hw_configs"
    return inside if inside.is_dir() else here.parent / "hw_configs"


def shipped(kind: Literal["targets", "chips"]) -> dict[str, Path]:
    """Names and files of the shipped targets or chips."""
    folder = config_folder() / ("chips" if kind == "chips" else "")
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_chip(name: str, relative_to: Path | None = None) -> ChipSpec:
    """A ChipSpec by the name of a shipped chip, or by the path of a YAML file.

    Raises:
        ConfigError: unknown name, or a file that is missing or wrong.
    """
    return read_chip(_find(name, "chips", relative_to))


def chip_called(name: str, given: str | None, option: str) -> str:
    """What a target calls the chip of a name: ``given``, a name or file, if it is that chip.

    Programs know the names of their chips, not the files of those that nmtool does not ship.
    ``option`` is how such a file is given, for the error.

    Raises:
        ConfigError: neither ``given`` nor a shipped chip has this name.
    """
    if given is not None and load_chip(given).name == name:
        return given
    if name in shipped("chips"):
        return name
    raise ConfigError(
        f"chip {name}: found no shipped chip of this name, allowed {', '.join(shipped('chips'))}; "
        f"name the file of yours: {option}"
    )


def read_chip(path: Path, overrides: Sequence[str] = ()) -> ChipSpec:
    """The chip of a file, with the numbers of the one that it ``extends``.

    Raises:
        ConfigError: every problem, at its line of the file that has it.
    """
    file = _chip_file(path, overrides, ())[0]
    facts = {key: getattr(file, key) for key in ChipFile.model_fields if key not in _HEADER}
    values = {key: _plain(fact.value) for key, fact in facts.items()}
    values |= {key: UNLIMITED for key in LIMITS if values[key] is None}
    return ChipSpec(name=file.name, facts=facts, **values)


def _chip_file(
    path: Path, overrides: Sequence[str], below: tuple[Path, ...]
) -> tuple[ChipFile, dict[str, Any]]:
    """A chip file and its whole content; ``below`` are the files that extend it."""
    document = yamlio.read(path, overrides)
    if isinstance(document.data, dict):
        if document.data.get("schema") != _SCHEMA:
            found = document.data.get("schema")
            _refuse(document, "schema", f"schema: found {found!r:.60}, allowed {_SCHEMA}")
        if "extends" in document.data:
            _inherit(document, path, below)
        else:
            _check_whole(document)
    file = yamlio.validate(document, ChipFile)
    _check_name(document, file.name, path)
    tiles = file.mesh.value[0] * file.mesh.value[1]
    if file.cores.value > (room := tiles * file.cores_per_tile.value):
        keys = ("cores", "mesh", "cores_per_tile")
        _refuse(
            document,
            next((key for key in keys if (key,) in document.marks), "cores"),
            f"cores: found {file.cores.value}, allowed up to {room}: {tiles} tiles (mesh) of "
            f"{file.cores_per_tile.value} cores (cores_per_tile)",
        )
    return file, document.data


def _inherit(document: yamlio.Document, path: Path, below: tuple[Path, ...]) -> None:
    """Fill a chip file with the numbers of the chip that it extends; its own take their place."""
    base, own = document.data.pop("extends"), document.data
    if not isinstance(base, str):
        _refuse(
            document, "extends", f"extends: found {base!r:.60}, allowed the name or file of a chip"
        )
    files = (*below, path.resolve())
    found = _named_chip(document, "extends", base, path.parent)
    if found.resolve() in files:
        text = f"extends: found {base}, which extends this file, allowed a chip that does not"
        _refuse(document, "extends", text)
    if len(files) > _MAX_EXTENDS:
        text = (
            f"extends: found more than {_MAX_EXTENDS} files that extend each other, allowed so many"
        )
        _refuse(document, "extends", text)
    parent, inherited = _chip_file(found, (), files)
    if own.get("name") == parent.name:
        _refuse(document, "name", f"name: found {parent.name}, as {base} has it, allowed another")
    header = ("schema", "name")
    changed = {k: v if k in header else _sourced(v, path) for k, v in own.items()}
    document.data = {k: v for k, v in inherited.items() if k not in header} | changed


def _check_whole(document: yamlio.Document) -> None:
    """Check that a file that extends no other has most of the numbers, with their sources."""
    keys = [key for key in ChipFile.model_fields if key not in _HEADER]
    missing = [key for key in keys if key not in document.data]
    if len(missing) > len(keys) // 2:
        text = f"found no {', '.join(missing)}, allowed all, or `extends: CHIP` to change a few"
        document.problems.append(((1, 1), text))
    for key in keys:
        value = document.data.get(key, {})
        if not isinstance(value, dict):
            text = f"{key}: found {value!r:.60}, allowed a mapping of value, standing and source"
            document.problems.append((document.where((key,)), text))
    document.fail()


def _sourced(value: Any, path: Path) -> Any:
    """A number of a user, with a standing and a source where it has none."""
    fact = value if isinstance(value, dict) and "value" in value else {"value": value}
    return {"standing": "user", "source": path.name, **fact}


def _named_chip(document: yamlio.Document, key: str, name: str, folder: Path) -> Path:
    """The chip file that a key of another file names; a wrong name is a problem of that file."""
    try:
        path = _find(name, "chips", folder)
        yamlio.read_text(path)
    except ConfigError as error:
        _refuse(document, key, str(error))
    return path


def _check_name(document: yamlio.Document, name: str, path: Path) -> None:
    """Programs are made for the chip of a name: no file may take that of a shipped one."""
    taken = shipped("chips").get(name)
    if taken is not None and taken.resolve() != path.resolve():
        _refuse(
            document, "name", f"name: found {name}, the name of a shipped chip, allowed another"
        )


def _refuse(document: yamlio.Document, key: str, text: str) -> NoReturn:
    document.problems.append((document.where((key,)), text))
    document.fail()
    raise AssertionError("a problem that was not raised")


_MAX_EXTENDS = 5
_SCHEMA = "nmtool.chip/v1"


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def is_chip(name: str) -> bool:
    """Whether a name or YAML file is a chip's rather than a target's.

    Raises:
        ConfigError: the file is missing or not YAML.
    """
    if not _is_path(name):
        return name in shipped("chips") and name not in shipped("targets")
    data = yamlio.parse(yamlio.read_text(Path(name)), name).data
    return isinstance(data, Mapping) and data.get("schema") == _SCHEMA


def load_hardware(name: str, overrides: Sequence[str] = ()) -> HardwareConfig:
    """A target by the name of a shipped one, or by the path of a YAML file.

    The chip it names is looked up at once, so that a wrong name shows before anything runs.

    Raises:
        ConfigError: unknown name, or a file that is missing or wrong.
    """
    if name.startswith(REPLAY):
        raise ConfigError(
            f"target {name}: found a log, allowed the name of a target or a YAML file: only "
            "finetune and deploy answer from a log"
        )
    path = _find(name, "targets", None)
    document = yamlio.read(path, overrides)
    if isinstance(document.data, dict) and document.data.get("schema") == "nmtool.chip/v1":
        raise ConfigError(
            f"{path}: found a chip, allowed a target; name it with one: --hw emulator "
            f"-s hw.chip={name}"
        )
    config = yamlio.validate(document, HardwareConfig)
    if ("chip",) in document.marks:
        found = _named_chip(document, "chip", config.chip, path.parent)
    else:
        found = _overriding_chip(config.chip)
    cores = read_chip(found).cores
    if config.cores_per_chip is not None and config.cores_per_chip > cores:
        where = ":".join(map(str, document.where(("cores_per_chip",))))
        raise ConfigError(
            f"{path}:{where}: cores_per_chip: found {config.cores_per_chip}, allowed 1 to {cores}, "
            f"the cores of {config.chip}"
        )
    _check_excluded(document, config, cores)
    return config.model_copy(update={"chip": str(found)}) if _is_path(config.chip) else config


def _check_excluded(document: yamlio.Document, config: HardwareConfig, cores: int) -> None:
    """Excluded cores are cores of the board."""
    for index, name in enumerate(config.excluded_cores):
        chip, core = divmod(name, cores) if isinstance(name, int) else name
        if chip >= config.chips or core >= cores:
            where = ":".join(map(str, document.where(("excluded_cores", index))))
            found = name if isinstance(name, int) else list(name)
            raise ConfigError(
                f"{document.path}:{where}: excluded_cores: found {found}, allowed 0 to "
                f"{config.chips * cores - 1}, or [chip, core] up to [{config.chips - 1}, "
                f"{cores - 1}]"
            )


def _overriding_chip(name: str) -> Path:
    """The chip file of ``-s hw.chip=NAME``: a path begins in the working directory."""
    try:
        path = _find(name, "chips", None)
        yamlio.read_text(path)
    except ConfigError as error:
        raise ConfigError(f"-s hw.chip={name}: {error}") from None
    return path


def backend_hint(name: str) -> str:
    """What to do about the name of a backend where that of a target is wanted; else nothing."""
    if name not in get_args(BackendName):
        return ""
    users = [
        target
        for target, path in shipped("targets").items()
        if yamlio.parse(yamlio.read_text(path), str(path)).data.get("backend") == name
    ]
    return (
        f"; {name} is a backend, which the target {' and the target '.join(users)} uses: a target "
        f"file my-target.yaml with `backend: {name}` names it; `nmtool compile --hw loihi2` makes "
        "a program for the chip alone"
    )


REPLAY = "replay:"
"""What stands before the file of a log that is to answer in place of a target."""


def _is_path(name: str) -> bool:
    return not name.startswith(REPLAY) and (name.endswith((".yaml", ".yml")) or "/" in name)


def _find(name: str, kind: Literal["targets", "chips"], relative_to: Path | None) -> Path:
    if _is_path(name):
        return (relative_to or Path()) / name
    known = shipped(kind)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        hint = (backend_hint(name) if kind == "targets" else "") or hint
        what = "chip" if kind == "chips" else "target"
        raise ConfigError(
            f"{what} {name}: unknown, allowed {', '.join(known)}, or the path of a .yaml file{hint}"
        )
    return known[name]

"""A log of what a target was asked and what it answered, and a target that answers from it.

A study opens the target once for each of its legs, such as ``transfer-seed0`` or ``loop-seed0``.
Within a leg the log has every run and every write in order, and a mark at the end of each round.
Answered from the log, a leg must ask for the same things in the same order: everything that is
sent is held against the log, and the first difference ends it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from pydantic import PrivateAttr

from nmtool.backends.base import (
    InputBatch,
    ManagedSession,
    Probe,
    Progress,
    Quantity,
    Recording,
    Session,
    input_batch,
    resolve_probe,
)
from nmtool.chip import HardwareConfig
from nmtool.compiler import Program
from nmtool.compiler.features import Feature
from nmtool.errors import ArtifactError, UnsupportedError
from nmtool.fixedpoint import IntArray
from nmtool.spikes import SpikeTrain


@dataclass(frozen=True)
class Opened:
    """A leg began: a program, of a latency in steps, was loaded."""

    leg: str
    fingerprint: str
    latency: int


@dataclass(frozen=True)
class Wrote:
    """Weights were written: SHA-256 of the mantissas, fingerprint of the program with them."""

    projection: str
    sha256: str
    fingerprint: str


@dataclass(frozen=True)
class Marked:
    """A round ended with this program on the target."""

    round: int
    fingerprint: str


@dataclass(frozen=True, eq=False)
class Ran:
    """Samples ran: program, SHA-256 of the input, what was asked for, and what came back."""

    fingerprint: str
    input_sha256: str
    probe: Mapping[Quantity, tuple[str, ...]]
    answer: Callable[[], Recording]


Event: TypeAlias = Opened | Wrote | Marked | Ran
E = TypeVar("E", Opened, Wrote, Marked, Ran)


class Log(Protocol):
    """What a study tells about itself, so that a log can be kept or followed."""

    def begin(self, leg: str, round: int | None = None) -> None:
        """A leg is about to open the target: afresh, or to go on after a round."""
        ...

    def watch(self, session: Session) -> Session:
        """The session that the leg is to use."""
        ...

    def mark(self, round: int, fingerprint: str) -> None:
        """A round has ended."""
        ...

    def skip(self, leg: str, runs: int) -> None:
        """A leg was finished before, in so many runs, and is not run again."""
        ...


class NoLog:
    """Nothing is kept and nothing is followed."""

    def begin(self, leg: str, round: int | None = None) -> None:
        """Nothing."""

    def watch(self, session: Session) -> Session:
        """The session itself."""
        return session

    def mark(self, round: int, fingerprint: str) -> None:
        """Nothing."""

    def skip(self, leg: str, runs: int) -> None:
        """Nothing."""


class Journal(Protocol):
    """Where events are kept; each is complete when ``append`` returns."""

    @property
    def name(self) -> str:
        """What it is called in errors."""
        ...

    @property
    def events(self) -> Sequence[Event]:
        """What is kept so far."""
        ...

    def append(self, event: Event) -> None:
        """Keep an event."""
        ...

    def cut(self, count: int) -> None:
        """Forget all but the first events."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a leg stands in a log.

    ``begin`` and ``at`` count events; ``fingerprint`` is the program that is on the target at
    ``at``, of a leg that goes on after a round.
    """

    begin: int
    at: int
    fingerprint: str | None = None


def find_leg(name: str, events: Sequence[Event], leg: str, round: int | None) -> Place | None:
    """Where a leg begins, or goes on after a round; None if it is not there.

    Raises:
        ArtifactError: it is there, but not the end of that round.
    """
    begins = [k for k, event in enumerate(events) if isinstance(event, Opened)]
    begin = next((k for k in begins if getattr(events[k], "leg", "") == leg), None)
    if begin is None:
        return None
    if round is None:
        return Place(begin, begin)
    end = next((k for k in begins if k > begin), len(events))
    for at in reversed(range(begin, end)):
        event = events[at]
        if isinstance(event, Marked) and event.round == round:
            return Place(begin, at + 1, event.fingerprint)
    raise ArtifactError(
        f"{name}: {leg}: found no end of round {round}, which it is to go on from: part of it went "
        "without --record; give no --record, or --force to start afresh"
    )


def legs_of(events: Sequence[Event]) -> list[str]:
    """The legs of a log, in order."""
    return [event.leg for event in events if isinstance(event, Opened)]


def runs_of(events: Sequence[Event], leg: str) -> int:
    """How many runs of a leg are kept."""
    count, inside = 0, False
    for event in events:
        if isinstance(event, Opened):
            inside = event.leg == leg
        count += inside and isinstance(event, Ran)
    return count


def digest_of(mantissa: IntArray) -> str:
    """SHA-256 of the shape and the weights of a projection."""
    array = np.ascontiguousarray(mantissa, dtype="<i8")
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


class Recorder:
    """Keeps a log of what a target answers.

    A leg that goes on after a round first writes the weights back that were on the target then.
    That is not kept: in the log it is as if it had never been interrupted.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._leg = ""
        self._restored: str | None = None

    def begin(self, leg: str, round: int | None = None) -> None:
        """Forget what a leg did after the round that it goes on from.

        Raises:
            ArtifactError: the log has not the leg that is to go on, or another one after it.
        """
        journal = self._journal
        place = find_leg(journal.name, journal.events, leg, round)
        if place is None and round is not None:
            raise ArtifactError(
                f"{journal.name}: found no {leg}, which goes on from round {round}, allowed a log "
                "from its beginning; give no --record, or --force to start afresh"
            )
        if place is not None:
            if later := legs_of(journal.events[place.begin + 1 :]):
                raise ArtifactError(
                    f"{journal.name}: found {later[0]} after {leg}, which is to run again; give no "
                    "--record, or --force to start afresh"
                )
            journal.cut(place.at)
        self._leg = leg
        self._restored = place.fingerprint if place else None

    def watch(self, session: Session) -> Session:
        """The session, with every answer kept."""
        program = session.program
        if self._restored is None:
            self._journal.append(Opened(self._leg, program.fingerprint, program.latency))
        return RecordingSession(session, self._journal.append, self._restored)

    def mark(self, round: int, fingerprint: str) -> None:
        """Keep the end of a round."""
        self._journal.append(Marked(round, fingerprint))

    def skip(self, leg: str, runs: int) -> None:
        """Check that a leg that does not run again was kept whole when it did.

        Raises:
            ArtifactError: it was not, or in part.
        """
        name, events = self._journal.name, self._journal.events
        if leg not in legs_of(events):
            raise ArtifactError(
                f"{name}: found no {leg}, which is finished already, allowed a log "
                "from its beginning; give no --record, or --force to start afresh"
            )
        if (kept := runs_of(events, leg)) != runs:
            raise ArtifactError(
                f"{name}: {leg}: found {kept} runs, allowed all {runs} of a leg that is finished: "
                "it went on without --record; give no --record, or --force to start afresh"
            )


class RecordingSession(ManagedSession):
    """A session whose answers are kept once they are there.

    Until the program has the fingerprint ``restored`` (if any), writes are not kept.
    """

    def __init__(
        self, session: Session, keep: Callable[[Event], None], restored: str | None = None
    ) -> None:
        self.program = session.program
        self._session = session
        self._keep = keep
        self._restored = restored
        self._see_restored()

    def run(
        self,
        spikes: SpikeTrain | Mapping[str, SpikeTrain],
        n_steps: int | None = None,
        probe: str | Probe | None = None,
        progress: Progress | None = None,
    ) -> Recording:
        """Run samples, and keep what came back."""
        sent = input_batch(self.program, spikes, n_steps).sha256
        asked = resolve_probe(self.program, probe)
        recording = self._session.run(spikes, n_steps, probe, progress)
        self._keep(Ran(self.program.fingerprint, sent, asked, lambda: recording))
        return recording

    def stream(
        self,
        spikes: SpikeTrain | Mapping[str, SpikeTrain],
        probe: str | Probe | None = None,
        n_steps: int | None = None,
    ) -> Recording:
        """A log has runs only.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("--record: found a stream, allowed runs: their order says all")

    def write_all(self, mantissas: Mapping[str, IntArray]) -> int:
        """Write weights, and keep which of them changed."""
        return sum(self._write(name, mantissa) for name, mantissa in mantissas.items())

    def _write(self, projection: str, mantissa: IntArray) -> int:
        changed = self._session.write_weights(projection, mantissa)
        self.program = self._session.program
        if self._restored is not None:
            self._see_restored()
        elif changed:
            self._keep(Wrote(projection, digest_of(mantissa), self.program.fingerprint))
        return changed

    def _see_restored(self) -> None:
        if self._restored == self.program.fingerprint:
            self._restored = None

    def reset(self) -> None:
        """Clear all states."""
        self._session.reset()

    def close(self) -> None:
        """Give the target back."""
        super().close()
        self._session.close()


class Player:
    """Follows a log: what is asked of the target must be what was asked of it then."""

    def __init__(self, name: str, events: Sequence[Event]) -> None:
        self.name, self._events = name, events
        self._at = 0
        self._restored: str | None = None
        self._done = {"run": 0, "write": 0}

    def begin(self, leg: str, round: int | None = None) -> None:
        """Go to a leg, or to where it goes on after a round.

        Raises:
            ArtifactError: it is not there.
        """
        place = find_leg(self.name, self._events, leg, round)
        if place is None:
            raise ArtifactError(
                f"{self.name}: found no {leg}, allowed {', '.join(legs_of(self._events))}: replay "
                "with the options that it was recorded with"
            )
        self._at, self._restored = place.at, place.fingerprint

    def watch(self, session: Session) -> Session:
        """The session itself: it is the log's."""
        return session

    def mark(self, round: int, fingerprint: str) -> None:
        """Hold the end of a round against the log."""
        marked = self.next(Marked, f"the end of round {round}")
        self.require(
            f"round {marked.round} ended with the program", marked.fingerprint, fingerprint
        )

    def skip(self, leg: str, runs: int) -> None:
        """Nothing: each leg is looked for by its name."""

    def open(self, program: Program) -> ReplaySession:
        """The session of the leg that comes next.

        Raises:
            ArtifactError: it was recorded with another program.
        """
        self._done = {"run": 0, "write": 0}
        if self._restored is None:
            opened = self.next(Opened, "a session")
            self.require("the session has the program", opened.fingerprint, program.fingerprint)
        return ReplaySession(program, self, self._restored)

    def next(self, kind: type[E], asked: str) -> E:
        """The next event, which must be of a kind.

        Raises:
            ArtifactError: it is of another kind, or there is none.
        """
        found = self._events[self._at] if self._at < len(self._events) else None
        if not isinstance(found, kind):
            raise ArtifactError(f"{self._where()}: found {_told(found)}, asked for {asked}")
        self._at += 1
        return found

    def require(self, what: str, recorded: str, sent: str) -> None:
        """Hold what is sent against the log.

        Raises:
            ArtifactError: it differs.
        """
        if recorded != sent:
            raise ArtifactError(
                f"{self._where()}: {what}: recorded {recorded[:16]}, now {sent[:16]}; replay with "
                "the run, the program and the options that it was recorded with"
            )

    def count(self, what: str) -> None:
        """Count runs and writes, for errors."""
        self._done[what] += 1

    def _where(self) -> str:
        legs = legs_of(self._events[: self._at])
        done = self._done
        where = (
            f"{legs[-1]}, after run {done['run']} and write {done['write']}" if legs else "begin"
        )
        return f"{self.name}: {where}"


def _told(event: Event | None) -> str:
    if event is None:
        return "the end of the log"
    if isinstance(event, Wrote):
        return f"a write of {event.projection}"
    if isinstance(event, Marked):
        return f"the end of round {event.round}"
    return f"the leg {event.leg}" if isinstance(event, Opened) else "a run"


class ReplaySession(ManagedSession):
    """A session that answers from a log, in order."""

    def __init__(self, program: Program, player: Player, restored: str | None) -> None:
        self.program = program
        self._player = player
        self._restored = restored if restored != program.fingerprint else None

    def _run(self, batch: InputBatch, probes: Probe, progress: Progress | None) -> Recording:
        player = self._player
        ran = player.next(Ran, f"a run of {batch.n_samples} samples")
        player.require("the run has the weights of program", ran.fingerprint, self._fingerprint)
        player.require("the run has the input of SHA-256", ran.input_sha256, batch.sha256)
        player.count("run")
        return _probed(player.name, ran, probes)

    def _go_on(self, batch: InputBatch, probes: Probe) -> Recording:
        raise UnsupportedError("replay: found a stream, allowed runs: a log has no others")

    def _store(self, projection: str) -> None:
        player, written = self._player, self.program.network.projections[projection]
        if self._restored is not None:
            if self._restored == self._fingerprint:
                self._restored = None
            return
        wrote = player.next(Wrote, f"a write of {projection}")
        player.require("the write goes to", wrote.projection, projection)
        sent = digest_of(written.weight_mantissa)
        player.require(f"the weights of {projection} have the SHA-256", wrote.sha256, sent)
        player.count("write")

    @property
    def _fingerprint(self) -> str:
        return self.program.fingerprint

    def reset(self) -> None:
        """Nothing: a log has no stream."""


def _probed(name: str, ran: Ran, probes: Probe) -> Recording:
    """What was recorded of what is asked for."""
    for quantity, populations in probes.items():
        recorded = ran.probe.get(quantity, ())
        if missing := [p for p in populations if p not in recorded]:
            raise ArtifactError(
                f"{name}: found the probe {quantity}:{', '.join(missing)}, allowed what was "
                f"recorded: {', '.join(f'{q}:{p}' for q, ps in ran.probe.items() for p in ps)}"
            )
    recording = ran.answer()
    if probes == ran.probe:
        return recording
    chosen = {
        q: {p: v for p, v in getattr(recording, q).items() if p in probes.get(q, ())}
        for q in ("spikes", "current", "voltage")
    }
    return replace(
        recording,
        spikes=chosen["spikes"],
        current=chosen["current"],
        voltage=chosen["voltage"],
    )


@dataclass(frozen=True)
class ReplayBackend:
    """Answers from a log; whatever was recorded could run."""

    player: Player
    name: str = "replay"

    @property
    def limits(self) -> Mapping[Feature, str]:
        """None: the target that was recorded had its own."""
        return {}

    def open(self, program: Program) -> Session:
        """The session that comes next in the log."""
        return self.player.open(program)


class ReplayTarget(HardwareConfig):
    """A target as it was recorded, answering from the log."""

    _player: Player = PrivateAttr()

    @property
    def player(self) -> Player:
        """What answers."""
        return self._player

    @classmethod
    def of(cls, hardware: HardwareConfig, path: Path, events: Sequence[Event]) -> ReplayTarget:
        """The target of a log; it is not waited for and not mended."""
        values = {key: getattr(hardware, key) for key in HardwareConfig.model_fields}
        target = cls.model_construct(**{**values, "recovery": []})
        target._player = Player(f"replay:{path}", events)
        return target

    def plain(self) -> HardwareConfig:
        """The target itself."""
        values = {key: getattr(self, key) for key in HardwareConfig.model_fields}
        return HardwareConfig.model_construct(**values)

"""nmtool finetune --stream: a deployed network that adapts while its input changes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nmtool import formats
from nmtool.backends import open_session
from nmtool.chip import HardwareConfig, load_chip
from nmtool.cli.common import Options, emit, note, progress, table
from nmtool.compiler import Program
from nmtool.config import Experiment
from nmtool.errors import UnsupportedError, UsageError
from nmtool.formats.container import write_json
from nmtool.provenance import provenance
from nmtool.training import require_torch

if TYPE_CHECKING:
    from nmtool.learning.stream import Learner

PARTS = 4
"""Of the stream, in the printed table."""
FILES = ("program.h5", "best.h5", "stream.json")


def drift_override(stream: bool, resume: bool, drift: str | None) -> list[str]:
    """The override that ``--drift`` stands for.

    Raises:
        UsageError: options that do not go together.
    """
    if drift is not None and not stream:
        raise UsageError("found --drift without --stream, which it belongs to")
    if stream and resume:
        raise UsageError(
            "found --stream and --resume: what has passed does not come again; go on from the "
            "last weights with --program FOLDER/program.h5"
        )
    return [] if drift is None else [f"finetune.stream.drift={json.dumps(drift)}"]


def learner_of(experiment: Experiment, program: Program, hardware: HardwareConfig) -> Learner:
    """What is to learn from a stream; its rule has been tried on the host.

    Raises:
        ConfigError: settings that do not go with the program, or a rule that fails.
        UnsupportedError: a network that cannot learn, or a target that cannot be streamed to.
    """
    check_stream(experiment, hardware)
    require_torch()
    from threadpoolctl import threadpool_limits

    from nmtool.learning.stream import Learner

    with threadpool_limits(limits=1):
        return Learner.of(experiment, program, load_chip(hardware.chip))


def check_stream(experiment: Experiment, hardware: HardwareConfig) -> None:
    """Refuse what cannot be streamed.

    Raises:
        ConfigError: a drift that is not for the data set.
        UnsupportedError: states kept on a target that takes no weights in an open stream.
    """
    from nmtool.data.drift import check_drift

    config = experiment.finetune.stream
    check_drift(experiment.data, config.drift)
    if config.pause is not None and hardware.backend == "lava-loihi":
        raise UnsupportedError(
            f"finetune.stream.pause: found {config.pause} on {hardware.name}, allowed null: "
            "lava-loihi takes no weights in an open stream"
        )


def adapt(
    experiment: Experiment,
    program: Program,
    hardware: HardwareConfig,
    folder: Path,
    learner: Learner,
    options: Options,
) -> None:
    """Run the stream, write what came of it, and say it; what was learned is kept if it is cut."""
    from threadpoolctl import threadpool_limits

    from nmtool.learning.stream import Course, Incoming, Stream

    if hardware.faults:
        note(options, f"{hardware.name} is a simulator with invented defects, not a chip")
    incoming = Incoming.of(experiment)
    passes = 1 + experiment.finetune.stream.control
    courses: dict[str, Course] = {}

    with progress(options, f"stream on {hardware.name}") as update, threadpool_limits(limits=1):

        def one(name: str, learner: Learner | None) -> None:
            before = sum(len(c.correct) for c in courses.values())
            with open_session(program, hardware) as session:
                stream = Stream(experiment, session, incoming, learner)
                courses[name] = stream.course
                stream.on_sample = lambda: update(
                    before + len(stream.course.correct), passes * len(incoming), name
                )
                stream.run()

        try:
            one("adapting", learner)
            if experiment.finetune.stream.control:
                one("frozen", None)
        except BaseException:  # a signal, or a fault of the board
            if courses:
                courses[[*courses][-1]].ended = "cut short"
                note(options, f"what was learned is kept in {folder}/program.h5")
            raise
        finally:
            if courses:
                document = _document(experiment, program, hardware, courses)
                _keep(folder, courses["adapting"], document)
    emit(options, "stream", document, _text(courses, hardware, folder))


def _keep(folder: Path, adapting: Any, document: dict[str, Any]) -> None:
    """Write the last weights, those of the best window if there was a whole one, and the report.

    They replace those of an earlier stream.
    """
    formats.save(folder / "program.h5", adapting.last)
    if adapting.best is None:
        (folder / "best.h5").unlink(missing_ok=True)
    else:
        formats.save(folder / "best.h5", adapting.best)
    write_json(folder / "stream.json", document)


def _document(
    experiment: Experiment, program: Program, hardware: HardwareConfig, courses: dict[str, Any]
) -> dict[str, Any]:
    return {
        "target": hardware.name,
        "program": program.fingerprint,
        "stream": experiment.finetune.stream.model_dump(mode="json"),
        **{name: course.as_json() for name, course in courses.items()},
        "provenance": provenance(
            target=hardware.model_dump(mode="json", by_alias=True),
            experiment=experiment.model_dump(mode="json", by_alias=True),
        ),
    }


def _text(courses: dict[str, Any], hardware: HardwareConfig, folder: Path) -> str:
    edges = np.linspace(0, len(courses["adapting"].correct), PARTS + 1).astype(int)
    rows = [
        (
            name,
            _share(course.correct),
            *(_share(course.correct[a:b]) for a, b in pairwise(edges)),
            course.updates,
            course.spent.writes,
        )
        for name, course in courses.items()
    ]
    parts = [f"to {edge}" for edge in edges[1:]]
    header = ("network", "accuracy", *parts, "updates", "weights written")
    lines = [
        f"accuracy on {hardware.name} as samples came",
        table(header, rows),
        *(f"{name}: {course.ended}" for name, course in courses.items() if course.ended),
        f"wrote {', '.join(str(folder / name) for name in FILES if (folder / name).exists())}",
    ]
    return "\n".join(lines)


def _share(correct: list[bool]) -> str:
    return f"{np.mean(correct):.4f}" if correct else ""

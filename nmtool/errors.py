"""Errors a user can cause, each with the exit code of the command line.

A message says which object is at fault, what was found, what is allowed and what to do next.
Anything else that escapes a command is a bug in nmtool and exits with 70.
"""

from __future__ import annotations


class NmtoolError(Exception):
    """Base of every error that nmtool raises on purpose."""

    exit_code: int = 70


class CheckFailed(NmtoolError):
    """A check did not hold: a mismatch, a regression, an accuracy below its bar."""

    exit_code = 1


class UsageError(NmtoolError, ValueError):
    """The command line is wrong, or an output exists and ``--force`` was not given."""

    exit_code = 2


class ConfigError(NmtoolError, ValueError):
    """A config, target or input is missing, unknown or wrong."""

    exit_code = 3


class UnsupportedError(NmtoolError, NotImplementedError):
    """The model holds something that the chip or the backend does not support."""

    exit_code = 4


class FitError(NmtoolError, ValueError):
    """A value or a network does not fit the chip or the budget."""

    exit_code = 5


class ArtifactError(NmtoolError, ValueError):
    """An artifact is missing, damaged, or made for something else."""

    exit_code = 6


class BoardUnavailable(NmtoolError, ConnectionError):
    """No board could be had."""

    exit_code = 7


class BoardError(NmtoolError, RuntimeError):
    """The board, or the simulator standing in for it, failed while it ran."""

    exit_code = 8


class AlignmentError(BoardError):
    """What was recorded cannot be put beside the model's steps."""


class BoardTimeout(BoardError, TimeoutError):
    """The board, or the simulator, was silent past its own timeout."""


class WriteError(NmtoolError, OSError):
    """A file could not be written: permission, disk full."""

    exit_code = 9


class DependencyError(NmtoolError, ImportError):
    """A package is missing, or of a version that nmtool does not know."""

    exit_code = 10

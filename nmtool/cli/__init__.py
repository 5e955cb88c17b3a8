"""The command line: one module a verb, loaded when it is called."""

from __future__ import annotations

import importlib
import sys

import click

VERBS = {
    "train": "train",
    "compile": "compile_",
    "deploy": "deploy",
    "finetune": "finetune",
    "compare": "compare",
    "bisect": "bisect",
    "golden": "golden",
    "test": "test",
    "import": "import_",
    "export": "export",
    "config": "config",
    "board": "board",
    "doctor": "doctor",
}


class _Verbs(click.Group):
    """A group whose commands are imported when they are called: ``nmtool --help`` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"nmtool.cli.{VERBS[name]}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            ctx.fail(f"found the command {args[0]!r}, allowed {', '.join(VERBS)}{hint}")
        return super().resolve_command(ctx, args)


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nmtool")
def nmtool() -> None:
    """Train, quantise, compile and deploy spiking networks for neuromorphic chips.

    Exit codes: 0 ok, 1 a check failed, 2 usage, 3 config or input, 4 model not supported, 5 does
    not fit the chip, 6 artifact, 7 board not available, 8 board fault or timeout, 9 cannot write,
    10 a dependency is missing, 70 a bug in nmtool, 124 --timeout, 130 interrupted, 143 terminated.
    """


def main() -> None:
    """Entry point of the console script."""
    from nmtool.cli.common import run

    sys.exit(run(nmtool))

"""The command line: ``python -m sia_layers map``, ``profile`` and ``info``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from sia_layers.cli import info, map, profile
from sia_layers.cli.common import Parser, Refusal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; None for those of the process.

    Returns:
        The exit code: 0 for success, 2 if the command was refused or its output cannot be written, 130 if it was
        interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold any bytes
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
        sys.stdout.flush()
    except Refusal as refusal:
        print(f"{given.prog}: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{given.prog}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None:  # it concerns a file, not the output
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # do not write again, not even at exit
        if not isinstance(error, BrokenPipeError):  # whoever closes a pipe wants no more
            print(f"{given.prog}: the output cannot be written: {error.strerror or error}", file=sys.stderr)
            return 2
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m sia_layers", description="Self-information of feature maps and photographs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (map, profile, info):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())

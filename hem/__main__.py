"""The program: ``hem``, ``python -m hem`` and ``python cli.py`` are the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; each is imported when it is asked for.

    Args:
        args: The arguments; None: those of the process.

    Returns:
        The exit code of the command, see :func:`hem.cli.main`.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    match arguments[:1]:
        case ["study"]:
            from hem.study.__main__ import main as command
        case ["report"]:
            from hem.report.__main__ import main as command
        case _:
            from hem.cli import main as command

            return command(arguments)
    return command(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())

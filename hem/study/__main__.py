"""``hem study <name>``, or ``python -m hem.study <name>``."""

import sys
from collections.abc import Sequence

from hem.study import command
from hem.study.plan import Statistics


def main(args: Sequence[str] | None = None) -> int:
    """Run a study; ``--plan`` uses the statistics of reports."""
    return command.main(args, _statistics)


def _statistics() -> Statistics:
    from hem.report import statistics  # imported late: scipy takes a second, and only this needs it

    return statistics


if __name__ == "__main__":
    sys.exit(main())

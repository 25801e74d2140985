"""``hem study <name>``, or ``python -m hem.study <name>``."""

import sys
from collections.abc import Sequence

from hem.report.statistics import seeds_needed
from hem.study import command


def main(args: Sequence[str] | None = None) -> int:
    """Run a study; ``--plan`` gets the statistics of reports."""
    return command.main(args, seeds_needed)


if __name__ == "__main__":
    sys.exit(main())

"""``hem study <name>``, or ``python -m hem.study <name>``."""

import sys
from collections.abc import Sequence
from typing import Any

from hem.study import command


def main(args: Sequence[str] | None = None) -> int:
    """Run a study; ``--plan`` uses the statistics of reports."""
    return command.main(args, _seeds_needed)


def _seeds_needed(*args: Any, **options: Any) -> int:
    from hem.report.statistics import seeds_needed  # imported late: scipy takes a second, and only this needs it

    return seeds_needed(*args, **options)


if __name__ == "__main__":
    sys.exit(main())

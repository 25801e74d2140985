"""``hem report runs/<study>``, or ``python -m hem.report runs/<study>``."""

import sys
from collections.abc import Sequence

from hem import report


def main(args: Sequence[str] | None = None) -> int:
    """Write a report; print a message if its packages are missing."""
    try:
        return int(report.main(args))
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

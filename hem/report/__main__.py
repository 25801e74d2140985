"""``python -m hem.report runs/<study>``."""

import sys

from hem import report

if __name__ == "__main__":
    try:
        sys.exit(report.main())
    except ImportError as error:
        sys.exit(f"error: {error}")

"""``python -m hem`` does what ``hem`` and ``python cli.py`` do."""

import sys

from hem.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""``python cli.py fit|validate|test|predict --config configs/<task>/<dataset>.yaml``."""

import sys

from hem.cli import main

if __name__ == "__main__":
    sys.exit(main())

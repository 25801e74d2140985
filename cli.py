"""``python cli.py fit --config <task>/<dataset>``: the same as ``hem`` and ``python -m hem``."""

import sys

from hem.__main__ import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m hem.study configs/study/<name>.yaml``."""

import sys

from hem.report.statistics import seeds_needed
from hem.study.command import main

if __name__ == "__main__":
    sys.exit(main(seeds_needed=seeds_needed))

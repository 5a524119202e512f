"""What ``make bench`` runs: ``python tests/bench/run.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by its path, so that its own folder is what Python would import from.
    sys.path[0] = str(Path(__file__).parents[2])
    from tests.bench.command import main

    sys.exit(main(sys.argv[1:]))
